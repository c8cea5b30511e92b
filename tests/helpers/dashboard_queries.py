"""Runs every query of the dashboard on a Prometheus that scrapes a server:
`python tests/helpers/dashboard_queries.py http://127.0.0.1:9090`. Ends with status 1 if it refuses one.

Not part of the tests: it takes a Prometheus (Debian: `apt install prometheus`), and a server with something to do.
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from lynx_moe.lab.watch.dashboard import dashboard

FILLED_IN = {"$model_name": ".+", "$engine": ".+", "$__rate_interval": "1m"}  # by Grafana


def answer(prometheus: str, path: str, **given: str) -> Any:
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(given)}", timeout=30) as reply:
        return json.load(reply)["data"]


def main(prometheus: str) -> int:
    made, refused = dashboard(), 0
    for variable in made["templating"]["list"][1:]:
        metric, label = variable["query"].removeprefix("label_values(").removesuffix(")").split(", ")
        print(f"{variable['name']}: {answer(prometheus, f'label/{label}/values', **{'match[]': metric})}")
    for panel in made["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in FILLED_IN.items():
                query = query.replace(name, value)
            try:
                series = answer(prometheus, "query", query=query)["result"]
            except urllib.error.HTTPError as error:
                refused += 1
                print(f"{panel['title']}: REFUSED {error.read().decode()}")
                continue
            print(f"{panel['title']}: {', '.join(one['value'][1][:8] for one in series) or 'no data'}")
    return refused


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1].rstrip("/"))))
