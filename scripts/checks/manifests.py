"""Every Kubernetes manifest of deploy/ against its published schema, strictly, and what no schema can tell.

Core kinds: kubernetes-validate. JobSet and Kubeflow Trainer: the models of Kubeflow's own package, with
unknown fields refused. The Prometheus operator's kinds have no schema in a Python registry: scripts/checks/operator.mjs
checks those. `--write` makes the PrometheusRule from the plain rules.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules/tally.yml"
OPERATOR_RULE = DEPLOY / "kubernetes/components/monitoring/prometheus-rule.yaml"
KUBERNETES = "1.33"
FOREIGN = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
passed, failed, foreign = 0, 0, []


def check(what, problem=None):
    global passed, failed
    if problem:
        failed += 1
        print(f"manifests: FAILED: {what}: {problem}")
    else:
        passed += 1


def documents(text):
    return [d for d in yaml.safe_load_all(text) if d]


def lost(given, kept, path=""):
    """The first field of `given` that the model did not keep, since it has no such field."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                return f"{path}.{key}"
            deeper = lost(value, kept[key], f"{path}.{key}")
            if deeper:
                return deeper
    elif isinstance(given, list):
        for index, value in enumerate(given):
            deeper = lost(value, kept[index], f"{path}[{index}]")
            if deeper:
                return deeper
    return None


def against_its_schema(where, manifest):
    kind = manifest["kind"]
    name = f"{where}: {kind} {manifest['metadata']['name']}"
    if kind in FOREIGN:
        try:
            kept = FOREIGN[kind].from_dict(manifest).to_dict()
            check(name, (field := lost(manifest, json.loads(json.dumps(kept, default=str)))) and f"no such field: {field}")
        except ValueError as error:
            check(name, error)
    elif manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        foreign.append(manifest)
    else:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            check(name)
        except kubernetes_validate.ValidationError as error:
            check(name, f"{error.message} at {'.'.join(map(str, error.path))}")


def pods(value):
    """The pod specifications anywhere in a manifest."""
    if isinstance(value, dict):
        if "containers" in value and isinstance(value["containers"], list):
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def what_no_schema_tells(where, manifests, options):
    """Hardening, options that the binaries have, and names that must meet."""
    for manifest in manifests:
        for pod in pods(manifest):
            name = f"{where}: {manifest['kind']} {manifest['metadata']['name']}"
            context = pod.get("securityContext", {})
            check(f"{name} runs as nobody in particular", not context.get("runAsNonRoot") and "runAsNonRoot is not set")
            check(f"{name} has no credentials of Kubernetes", pod.get("automountServiceAccountToken") is not False and "a token is mounted")
            mounted = {v["name"] for v in pod.get("volumes", [])} | {c["metadata"]["name"] for c in manifest["spec"].get("volumeClaimTemplates", [])}
            for container in pod["containers"]:
                inner = container["securityContext"]
                hard = inner["readOnlyRootFilesystem"] and not inner["allowPrivilegeEscalation"] and inner["capabilities"] == {"drop": ["ALL"]}
                check(f"{name} is hardened", not hard and "securityContext is weaker than in the base")
                missing = {m["name"] for m in container.get("volumeMounts", [])} - mounted
                check(f"{name} mounts what is there", missing and f"no volume {missing}")
                program = "coordinator" if "coordinator" in container["image"] else "worker"
                for argument in container["args"]:
                    option, _, value = argument.partition("=")
                    check(f"{name} {option}", option not in options[program] and f"{program} has no such option")
                    if option.endswith("listen"):
                        check(f"{name} {option} serves IPv6 as well", not value.startswith("[::]:") and f"it is {value}")


def where_names_and_metrics_come_from(where, manifests):
    """Workers reach a name service on the node itself, and Prometheus shows a certificate where one is asked for."""
    for manifest in manifests:
        for rule in manifest["spec"].get("egress", []) if manifest["kind"] == "NetworkPolicy" else []:
            if 53 in [port["port"] for port in rule["ports"]]:
                check(f"{where}: the name service may be anywhere", "to" in rule and "NodeLocal DNSCache is no pod")
    asked = any("--tls-client-ca" in argument for m in manifests for pod in pods(m) for c in pod["containers"] for argument in c["args"])
    for manifest in manifests:
        if asked and manifest["kind"] == "ServiceMonitor":
            shown = manifest["spec"]["endpoints"][0].get("tlsConfig", {})
            check(f"{where}: Prometheus shows a certificate", not {"cert", "keySecret"} <= shown.keys() and "it shows none")


def how_pods_end_and_are_probed(where, manifests):
    """A coordinator that hangs is started again, pods say what they use, and one that was told to leave is no failure."""
    for manifest in manifests:
        for pod in pods(manifest):
            name = f"{where}: {manifest['kind']} {manifest['metadata']['name']}"
            check(f"{name} has no variables of other services", pod.get("enableServiceLinks") is not False and "enableServiceLinks is not false")
            for container in pod["containers"]:
                coordinator = "coordinator" in container["image"]
                resources = container.get("resources", {})
                said = {"cpu", "memory"} <= resources.get("requests", {}).keys() and "memory" in resources.get("limits", {})
                check(f"{name} says what it uses", not said and "requests of cpu and memory, or the limit of memory, are missing")
                if not coordinator:
                    # --threads is one for each core that the limit leaves.
                    check(f"{name} may use what it asks for", resources["requests"]["cpu"] != resources["limits"].get("cpu") and "the limit of cpu is another")
                ports = {port["name"] for port in container.get("ports", [])}
                for kind in ("startupProbe", "livenessProbe") if coordinator else ():
                    check(f"{name} has a {kind}", container.get(kind, {}).get("httpGet", {}).get("port") not in ports and "on no port of its own")
                # The grace that the programs take (docs/deploy.md), and some more.
                check(f"{name} has time to end", pod["terminationGracePeriodSeconds"] < (120 if coordinator else 15) and "it is killed before")
        for job in jobs(manifest):
            container = job["template"]["spec"]["containers"][0]["name"]
            rules = job.get("podFailurePolicy", {}).get("rules", [])
            codes = [rule["onExitCodes"] for rule in rules if rule["action"] == "Ignore" and "onExitCodes" in rule]
            right = any(code["containerName"] == container and code["operator"] == "In" and 75 in code["values"] for code in codes)
            check(f"{where}: {container} may be stopped before the run's end", not right and "code 75 counts as failure")
            evicted = any(condition["type"] == "DisruptionTarget" for rule in rules for condition in rule.get("onPodConditions", []))
            check(f"{where}: {container} may be evicted", not evicted and "an eviction counts as failure")


def jobs(value):
    """The specifications of jobs anywhere in a JobSet or what makes one."""
    if isinstance(value, dict):
        if "backoffLimit" in value:
            yield value
        for inner in value.values():
            yield from jobs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from jobs(inner)


def options_of(binaries):
    """The long options that the binaries have."""
    found = {}
    for program in ("coordinator", "worker"):
        text = subprocess.run([binaries / program, "--help"], capture_output=True, text=True, check=True).stdout
        found[program] = set(re.findall(r"--[a-z][a-z0-9-]+", text))
    return found


def operator_rule():
    """The plain rules as a PrometheusRule."""
    text = RULES.read_text()
    body = "".join(f"  {line}\n" if line else "\n" for line in text[text.index("groups:") :].rstrip("\n").split("\n"))
    head = f"# {RULES.relative_to(ROOT)} for the Prometheus operator. Made by scripts/checks/manifests.py --write.\n"
    return f"{head}apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: tally\nspec:\n{body}"


def runbook():
    """Every alert leads to a section that is there."""
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                notes = rule["annotations"]
                complete = all(notes.get(key) for key in ("summary", "description", "runbook"))
                check(f"{rule['alert']} says what, why and what to do", not complete and "an annotation is missing")
                check(f"{rule['alert']} in the runbook", notes["runbook"].split("#")[1] not in anchors and "no such section")


def main():
    if "--write" in sys.argv:
        OPERATOR_RULE.write_text(operator_rule())
        return
    binaries, rendered, output = (Path(argument) for argument in sys.argv[1:4])
    options = options_of(binaries)
    sources = {path.name: documents(path.read_text()) for path in sorted(rendered.glob("*.yaml"))}
    sources |= {f"jobs/{path.name}": documents(path.read_text()) for path in sorted((DEPLOY / "kubernetes/jobs").glob("*.yaml"))}
    for where, manifests in sources.items():
        for manifest in manifests:
            against_its_schema(where, manifest)
        what_no_schema_tells(where, manifests, options)
        where_names_and_metrics_come_from(where, manifests)
        how_pods_end_and_are_probed(where, manifests)
    check("the operator's rules are the plain ones", OPERATOR_RULE.read_text() != operator_rule() and "run manifests.py --write")
    runbook()
    output.write_text(json.dumps(foreign))
    print(f"manifests: {passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
