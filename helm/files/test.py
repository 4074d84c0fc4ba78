"""Ask a release whether it is ready, and score one completion: `python test.py URL`, for `helm test`.

The API key is in ASSAY_API_KEY. Without one, a service that has keys must refuse the request with 401.
"""

import json
import os
import sys
import urllib.error
import urllib.request

url, key = sys.argv[1], os.environ.get("ASSAY_API_KEY", "").strip()
with urllib.request.urlopen(f"{url}/ready", timeout=30) as answer:
    print("ready:", answer.read().decode())
body = json.dumps({"items": [{"prompt": "Is it raining?", "completion": "Yes, since noon."}]}).encode()
headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
try:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/score", body, headers), timeout=60) as answer:
        row = json.load(answer)["data"][0]
except urllib.error.HTTPError as error:
    if error.code != 401 or key:
        sys.exit(f"POST /v1/score: {error.code} {error.read().decode()}")
    print("POST /v1/score: 401 without a key; set test.keySecret to score an item")
else:
    if "score" not in row:
        sys.exit(f"the item has no score: {row}")
    print("score:", row["score"])
