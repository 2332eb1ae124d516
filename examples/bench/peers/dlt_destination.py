"""The upload with dlt: its table source with the pyarrow back end, and a destination of our own.

Needs dlt, sqlalchemy, pyarrow, psycopg[binary], orjson, requests.
"""

import base64
import hashlib
import hmac
import os
import tempfile
import time
from itertools import groupby
from zoneinfo import ZoneInfo

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"

import dlt
import orjson
import psycopg
import requests
from dlt.sources.sql_database import sql_table

PATH = "/open/v3/account/treasuryBalance"
KEY, SECRET = os.environ["ELVEN_API_KEY"], os.environ["ELVEN_API_SECRET"]
URL = os.environ["DATABASE_URL"]

with psycopg.connect(URL) as connection:
    entities = connection.execute("select entity_id, timezone from elven_sync.entities").fetchall()
zones = {entity: ZoneInfo(zone) for entity, zone in entities}
session = requests.Session()


def headers():
    timestamp = str(int(time.time() * 1000))
    signature = hmac.digest(SECRET.encode(), (timestamp + "POST" + PATH).encode(), hashlib.sha256)
    return {
        "elven-api-key": KEY,
        "elven-api-timestamp": timestamp,
        "elven-api-sign": base64.b64encode(signature).decode(),
        "content-type": "application/json",
    }


@dlt.destination(
    batch_size=8000,
    loader_file_format="parquet",
    naming_convention="direct",
    loader_parallelism_strategy="parallel",
)
def elven(items, table):
    rows = sorted(items.to_pylist(), key=lambda row: row["entity_id"])
    for entity, of_entity in groupby(rows, key=lambda row: row["entity_id"]):
        of_entity = list(of_entity)
        for start in range(0, len(of_entity), 1000):
            content = orjson.dumps([
                {
                    "entityAccountId": row["entity_account_id"],
                    "currency": row["currency"],
                    "datetime": row["captured_at"].astimezone(zones[entity]).isoformat(" ")[:19],
                    "balance": orjson.Fragment(format(row["balance"], "f")),
                }
                for row in of_entity[start : start + 1000]
            ])
            answer = session.post(os.environ["ELVEN_API_URL"] + PATH, data=content, headers=headers())
            assert answer.json()["success"] is True


table = sql_table(
    credentials=URL.replace("postgres://", "postgresql+psycopg://", 1),
    schema="ledger",
    table="balance_snapshots",
    backend="pyarrow",
    chunk_size=50_000,
    included_columns=["id", "entity_id", "entity_account_id", "currency", "captured_at", "balance"],
)
# A numeric without a scale is otherwise taken for one of 9 decimals.
table.apply_hints(columns={"balance": {"data_type": "decimal", "precision": 38, "scale": 18}})
with tempfile.TemporaryDirectory() as folder:
    dlt.pipeline("elven_bench", destination=elven, pipelines_dir=folder).run(table)
