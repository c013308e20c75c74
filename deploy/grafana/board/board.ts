// Writes the Grafana board. Grafana's own builders make it, whose types are its published schema, so that
// what compiles is a board. `node board.js [FILE]`; without a file it goes to standard output.
import { writeFileSync } from 'node:fs';
import { DashboardBuilder, DashboardCursorSync, DatasourceVariableBuilder, QueryVariableBuilder, RowBuilder, VariableRefresh } from '@grafana/grafana-foundation-sdk/dashboard';
import * as common from '@grafana/grafana-foundation-sdk/common';
import { DataqueryBuilder } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as StatBuilder } from '@grafana/grafana-foundation-sdk/stat';
import { PanelBuilder as TimeseriesBuilder } from '@grafana/grafana-foundation-sdk/timeseries';

const source = { type: 'prometheus', uid: '${datasource}' };

/** An expression and what its series are called. */
type Series = [expression: string, legend: string];

const run = 'instance=~"$instance"';
const rate = (name: string, labels = '') => `rate(${name}{${run}${labels && ', ' + labels}}[$__rate_interval])`;
const quantile = (q: number, name: string) => `histogram_quantile(${q}, sum by (instance, le) (${rate(name + '_bucket')}))`;
const mean = (name: string) => `${rate(name + '_sum')} / ${rate(name + '_count')}`;
const value = (name: string, labels = '') => `${name}{${run}${labels && ', ' + labels}}`;

const queries = (series: Series[]) =>
    series.map(([expression, legend], index) =>
        new DataqueryBuilder().refId(String.fromCharCode(65 + index)).datasource(source).expr(expression).legendFormat(legend).range());

/** A number; what it means is told where its title is pointed at. */
function stat(title: string, description: string, unit: string, ...series: Series[]) {
    const panel = new StatBuilder()
        .title(title).description(description).datasource(source).unit(unit).height(4).span(4)
        .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']));
    queries(series).forEach((query) => panel.withTarget(query));
    return panel;
}

/** Curves over time; `stacked` where they are parts of a whole. */
function curves(title: string, description: string, unit: string, stacked: boolean, ...series: Series[]) {
    const panel = new TimeseriesBuilder()
        .title(title).description(description).datasource(source).unit(unit).height(8).span(8)
        .fillOpacity(stacked ? 40 : 8).lineWidth(1).showPoints(common.VisibilityMode.Never)
        .stacking(new common.StackingConfigBuilder().mode(stacked ? common.StackingMode.Normal : common.StackingMode.None))
        .tooltip(new common.VizTooltipOptionsBuilder().mode(common.TooltipDisplayMode.Multi).sort(common.SortOrder.Descending))
        .legend(new common.VizLegendOptionsBuilder().displayMode(common.LegendDisplayMode.List).placement(common.LegendPlacement.Bottom).showLegend(true));
    queries(series).forEach((query) => panel.withTarget(query));
    return panel;
}

const board = new DashboardBuilder('Tally')
    .uid('tally').description('A training run: what it learns, how fast, who works, and what went wrong.')
    .tags(['tally']).refresh('10s').time({ from: 'now-30m', to: 'now' }).timezone('browser').editable()
    .tooltip(DashboardCursorSync.Crosshair)
    .withVariable(new DatasourceVariableBuilder('datasource').label('Data source').type('prometheus'))
    .withVariable(new QueryVariableBuilder('instance').label('Coordinator').datasource(source)
        .query('label_values(tally_build_info, instance)').refresh(VariableRefresh.OnTimeRangeChanged).multi(true).includeAll(true))

    .withRow(new RowBuilder('Training'))
    .withPanel(stat('Progress', 'Committed steps of all steps.', 'percentunit', [`${value('tally_step')} / ${value('tally_steps')}`, '']))
    .withPanel(stat('Time left', 'At the pace of the last five minutes.', 's',
        [`(${value('tally_steps')} - ${value('tally_step')}) / rate(tally_steps_total{${run}}[5m])`, '']))
    .withPanel(stat('Epoch', 'From 1.', 'none', [value('tally_epoch'), '']))
    .withPanel(stat('Test loss', 'The mean loss of the last test pass.', 'none', [value('tally_test_loss'), '']))
    .withPanel(stat('Workers ready', 'Of those the run was started for.', 'none',
        [value('tally_workers', 'state="ready"'), 'ready'], [value('tally_workers_wanted'), 'wanted']))
    .withPanel(stat('Samples lost or used twice', 'Always 0 (DATA-1).', 'none',
        [`${value('tally_samples_lost_total')} + ${value('tally_samples_duplicated_total')}`, '']))
    .withPanel(curves('Loss', "The last step's mean loss, by part.", 'none', false, [value('tally_loss'), '{{part}}']))
    .withPanel(curves('Test metrics', 'Of the last test pass, by metric.', 'percentunit', false, [value('tally_test_metric_ratio'), '{{metric}}']))
    .withPanel(curves('Learning rate and gradient norm', "The last step's; the norm is before clipping.", 'none', false,
        [value('tally_learning_rate'), 'learning rate'], [value('tally_gradient_norm'), 'gradient norm']))

    .withRow(new RowBuilder('Throughput'))
    .withPanel(curves('Samples a second', 'Training samples committed.', 'none', false, [rate('tally_samples_total'), 'samples/s']))
    .withPanel(curves('Step time', 'How long steps take.', 's', false,
        [quantile(0.5, 'tally_step_seconds'), 'median'], [quantile(0.95, 'tally_step_seconds'), '95th percentile'], [mean('tally_step_seconds'), 'mean']))
    .withPanel(curves('Where the time goes', 'Seconds of each second; the parts add up to 1.', 's', true,
        [rate('tally_run_seconds_total'), '{{part}}']))

    .withRow(new RowBuilder('Workers'))
    .withPanel(curves('Up', '1 while a member of the cluster.', 'none', false, [value('tally_worker_up'), '{{worker}}']))
    .withPanel(curves('Samples a second, by worker', 'What each contributes.', 'none', true, [rate('tally_worker_samples_total'), '{{worker}}']))
    .withPanel(curves('Seconds a sample, by worker', 'Smoothed; the slow one is the high one.', 's', false, [value('tally_worker_sample_seconds'), '{{worker}}']))
    .withPanel(curves('What workers do', 'Seconds of each second, mean over the workers, by activity.', 's', true,
        [`avg by (instance, activity) (${rate('tally_worker_activity_seconds_total')})`, '{{activity}}']))
    .withPanel(curves('Waited for', 'How long the mean worker waited for this one, the slowest, in each second.', 's', true,
        [rate('tally_worker_waited_for_seconds_total'), '{{worker}}']))
    .withPanel(curves('Round trip and clock', "Over the control stream; the error is a bound on the estimate of a worker's clock.", 's', false,
        [value('tally_worker_round_trip_seconds'), 'round trip {{worker}}'], [value('tally_worker_clock_error_seconds'), 'clock error {{worker}}']))

    .withRow(new RowBuilder('All-reduce'))
    .withPanel(curves('Parts of a step', 'Means: the slowest worker computes, the sum is completed, the mean worker waits.', 's', false,
        [mean('tally_step_compute_seconds'), 'computing'], [mean('tally_step_transfer_seconds'), 'transferring'],
        [mean('tally_step_waiting_seconds'), 'waiting for the slowest'], [mean('tally_worker_apply_seconds'), "a worker's update"]))
    .withPanel(curves('Gradient bytes', 'Taken from and sent to workers over the network or in shared memory.', 'Bps', false,
        [rate('tally_gradient_received_bytes_total'), 'received'], [rate('tally_gradient_sent_bytes_total'), 'sent']))
    .withPanel(curves('Round', "From the beginning of a worker's contribution to the whole sum.", 's', false,
        [quantile(0.5, 'tally_worker_round_seconds'), 'median'], [quantile(0.95, 'tally_worker_round_seconds'), '95th percentile'],
        [value('tally_step_deadline_seconds'), 'deadline']))

    .withRow(new RowBuilder('Faults'))
    .withPanel(curves('Workers joined and lost', 'Since the start of the coordinator.', 'none', false,
        [value('tally_workers_joined_total'), 'joined'], [value('tally_workers_lost_total', 'polite="true"'), 'left'],
        [value('tally_workers_lost_total', 'polite="false"'), 'lost'], [`sum by (instance) (${value('tally_evictions_total')})`, 'sent away']))
    .withPanel(curves('Microbatches computed by others', 'Since the start: of lost workers, and beside late ones.', 'none', false,
        [value('tally_microbatches_taken_over_total'), 'taken over'], [value('tally_microbatches_speculative_total'), 'speculative']))
    .withPanel(curves('Done again, and found wrong', 'Since the start; all but audits with equal bits should stay 0 while nothing fails.', 'none', false,
        [value('tally_aborted_attempts_total'), 'attempts aborted'], [value('tally_steps_recomputed_total'), 'steps computed again'],
        [value('tally_evictions_total', 'drifted="true"'), 'replicas drifted'], [value('tally_audits_total'), 'audits, equal={{equal}}']))

    .withRow(new RowBuilder("Coordinator's process"))
    .withPanel(curves('CPU', 'Cores in use.', 'none', false, [rate('process_cpu_seconds_total', 'job="tally"'), 'cores']))
    .withPanel(curves('Memory', 'Resident.', 'bytes', false, [value('process_resident_memory_bytes', 'job="tally"'), 'resident']))
    .withPanel(curves('Open files and threads', 'Sockets count as files.', 'none', false,
        [value('process_open_fds', 'job="tally"'), 'open files'], [value('process_threads', 'job="tally"'), 'threads']))
    .withPanel(curves('Free disk', "On the run directory's file system.", 'bytes', false,
        [value('tally_run_dir_free_bytes'), 'free'], [value('tally_run_dir_size_bytes'), 'size']))
    .withPanel(curves('Age of the newest checkpoint', 'What would be done again if everything died now.', 's', false,
        [`time() - ${value('tally_checkpoint_time_seconds')}`, 'age']))
    .withPanel(curves('Checkpoints and starts', 'Checkpoints of this start, by result; starts of this run.', 'none', false,
        [value('tally_checkpoints_total'), 'checkpoints {{result}}'], [value('tally_incarnation'), 'starts']));

const json = JSON.stringify(board.build(), null, 2) + '\n';
const file = process.argv[2];
if (file === undefined) {
    process.stdout.write(json);
} else {
    writeFileSync(file, json);
}
