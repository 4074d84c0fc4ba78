/** Write a request as a curl command and as Python code; pure. */

/** Return the curl command that sends `body` to `POST /v1/rank` of the service at `origin`, with a key if it needs one. */
export function writeCurl(origin, body, needsKey) {
  const json = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  const key = needsKey ? ` -H "authorization: Bearer $(cat assay.key)"` : "";
  return `curl -s '${origin}/v1/rank'${key} -H 'content-type: application/json' -d '${json}'`;
}

/** Return the Python code that sends the same request by the client. */
export function writePython(origin, body, needsKey) {
  const completions = body.completions.map((entry) => `    ${writeEntry(entry)},`).join("\n");
  const rule = body.weights ? `, weights=${writeMapping(body.weights)}` : body.model ? `, model=${quote(body.model)}` : "";
  return [
    ...(needsKey ? ["from pathlib import Path", ""] : []),
    "from assay_client import RewardClient",
    "",
    `with RewardClient(${quote(origin)}${needsKey ? ', api_key=Path("assay.key").read_text().strip()' : ""}) as client:`,
    `    ranking = client.rank(${quote(body.prompt)}, [`,
    completions.replaceAll(/^/gm, "    "),
    `    ]${rule})`,
    "    for place in ranking.results:",
    "        print(place.index, place.score)",
  ].join("\n");
}

function writeEntry(entry) {
  return typeof entry === "string"
    ? quote(entry)
    : `{"completion": ${quote(entry.completion)}, "finish_reason": ${quote(entry.finish_reason)}}`;
}

function writeMapping(weights) {
  return `{${Object.entries(weights).map(([name, weight]) => `${quote(name)}: ${weight}`).join(", ")}}`;
}

/** Return a Python string literal. JSON's escapes are Python's, but for pairs of surrogates, which JSON does not need. */
function quote(text) {
  return JSON.stringify(text);
}
