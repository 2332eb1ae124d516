"""The upload as one would write it by hand: a server-side cursor, orjson, 8 requests in flight.

No journal, no watermark, no retries: it stops at the first problem. Needs psycopg[binary], orjson, aiohttp.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import time
from itertools import groupby
from operator import itemgetter
from zoneinfo import ZoneInfo

import aiohttp
import orjson
import psycopg

PATH = "/open/v3/account/treasuryBalance"
IN_FLIGHT = 8
KEY, SECRET = os.environ["ELVEN_API_KEY"], os.environ["ELVEN_API_SECRET"]
ROWS = """select entity_id, entity_account_id, currency, captured_at, balance
            from ledger.balance_snapshots order by entity_id, change_xid, id"""


def headers():
    timestamp = str(int(time.time() * 1000))
    signature = hmac.digest(SECRET.encode(), (timestamp + "POST" + PATH).encode(), hashlib.sha256)
    return {
        "elven-api-key": KEY,
        "elven-api-timestamp": timestamp,
        "elven-api-sign": base64.b64encode(signature).decode(),
        "content-type": "application/json",
    }


def body(rows, zone):
    return orjson.dumps([
        {
            "entityAccountId": account,
            "currency": currency,
            "datetime": captured_at.astimezone(zone).isoformat(" ")[:19],
            "balance": orjson.Fragment(format(balance, "f")),
        }
        for _, account, currency, captured_at, balance in rows
    ])


async def send(session, queue):
    while (content := await queue.get()) is not None:
        async with session.post(os.environ["ELVEN_API_URL"] + PATH, data=content, headers=headers()) as answer:
            assert (await answer.json(content_type=None))["success"] is True


async def batches(connection):
    """At most 1000 rows of one entity each; a few more batches than needed, at the ends of pages."""
    async with connection.cursor("ledger", binary=True) as cursor:
        await cursor.execute(ROWS)
        while page := await cursor.fetchmany(10_000):
            for _, rows in groupby(page, key=itemgetter(0)):
                rows = list(rows)
                for start in range(0, len(rows), 1000):
                    yield rows[start : start + 1000]


async def main():
    queue = asyncio.Queue(IN_FLIGHT)
    connection = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"])
    async with connection, aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(send(session, queue))
        cursor = await connection.execute("select entity_id, timezone from elven_sync.entities")
        zones = {entity: ZoneInfo(zone) for entity, zone in await cursor.fetchall()}
        async for batch in batches(connection):
            await queue.put(body(batch, zones[batch[0][0]]))
        for _ in range(IN_FLIGHT):
            await queue.put(None)


asyncio.run(main())
