# Sourced: what stands in a run's journal.

# count_events JOURNAL EVENT: how many lines there are of an event; 0 before there is a journal.
count_events() {
    local count
    count=$(grep -cs "\"event\":\"$2\"" "$1") || true
    echo "${count:-0}"
}
