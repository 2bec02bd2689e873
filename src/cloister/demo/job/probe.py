"""Runs inside the job: try what the job should and should not be able to reach, and write what happened.

The arguments, joined (each is at most 256 characters), are a JSON object: region, bucket, key, other_bucket, repository, addresses {label: [host, port]}.
The result, /opt/ml/processing/output/probe.json, maps a label to a short word.
"""

import concurrent.futures
import json
import pathlib
import socket
import sys
import urllib.error
import urllib.request

asked = json.loads("".join(sys.argv[1:]))
region, bucket = asked["region"], asked["bucket"]
found = {}


def resolves(name):
    try:
        return "resolves" if socket.getaddrinfo(name, 443, socket.AF_INET) else "does not resolve"
    except OSError as error:
        return f"does not resolve ({error})"


def connects(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
        return "reachable"
    except OSError:
        return "unreachable"


def reads(name, key):
    import boto3
    import botocore.config
    import botocore.exceptions

    s3 = boto3.client(
        "s3",
        config=botocore.config.Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}),
    )
    try:
        return f"read {len(s3.get_object(Bucket=name, Key=key)['Body'].read())} bytes over {s3.meta.endpoint_url.split(':')[0]}"
    except botocore.exceptions.ClientError as error:
        message = error.response["Error"].get("Message", "")
        gate = " by the endpoint policy" if "VPC endpoint policy" in message else ""
        return f"{error.response['ResponseMetadata']['HTTPStatusCode']}{gate}"
    except Exception as error:
        return type(error).__name__


def fetches(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError as error:
        return f"failed ({error})"


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    waiting = {}
    for name in asked.get("names", []):
        waiting[f"DNS {name}"] = pool.submit(resolves, name)
    if bucket:
        waiting["own bucket, boto3"] = pool.submit(reads, bucket, asked["key"])
        waiting["another bucket, boto3"] = pool.submit(reads, asked["other_bucket"], asked["key"])
    waiting["package repository"] = pool.submit(fetches, asked["repository"])
    for label, (host, port) in asked.get("addresses", {}).items():
        waiting[label] = pool.submit(connects, host, port)
    for label, answer in waiting.items():
        found[label] = answer.result()

output = pathlib.Path("/opt/ml/processing/output/probe.json")
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text(json.dumps(found, indent=2))
print(json.dumps(found, indent=2))
