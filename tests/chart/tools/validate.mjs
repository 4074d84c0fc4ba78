// Validates custom resources: `node validate.mjs TOOLS < OBJECTS`, with the schemas of
// `@kubernetes-models` in the folder TOOLS.
// It reads a JSON list of objects, and prints a JSON list of [index, fault]. Objects of unknown kinds are faults, too.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const files = {
  HTTPRoute: "gateway-api/_schemas/IoK8sSigsGatewayApiApisV1HTTPRoute.js",
  ScaledObject: "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1ScaledObject.js",
  PrometheusRule: "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1PrometheusRule.js",
  ServiceMonitor: "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor.js",
};
const kinds = {};
for (const [kind, file] of Object.entries(files)) {
  kinds[kind] = (await import(pathToFileURL(join(process.argv[2], "node_modules/@kubernetes-models", file)))).validate;
}

// The schemas accept unknown keys, which a cluster drops silently. A validator reads every key that it knows, and no other.
function watch(value, path, unread) {
  if (value === null || typeof value !== "object") return value;
  const inner = {};
  for (const [key, part] of Object.entries(value)) {
    inner[key] = watch(part, `${path}/${key}`, unread);
    if (!Array.isArray(value)) unread.add(`${path}/${key}`);
  }
  const target = Array.isArray(value) ? Object.values(inner) : inner;
  return new Proxy(target, {
    get(object, key) {
      if (typeof key === "string") unread.delete(`${path}/${key}`);
      return object[key];
    },
  });
}

const faults = [];
JSON.parse(readFileSync(0, "utf8")).forEach((item, index) => {
  const validate = kinds[item.kind];
  if (validate === undefined) {
    faults.push([index, `no schema of ${item.apiVersion} ${item.kind}`]);
    return;
  }
  const unread = new Set();
  if (!validate(watch(item, "", unread))) {
    for (const error of validate.errors) faults.push([index, `${error.instancePath} ${error.message}`]);
  }
  for (const path of unread) faults.push([index, `${path} is an unknown key`]);
});
process.stdout.write(JSON.stringify(faults));
