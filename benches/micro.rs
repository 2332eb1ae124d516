//! The cost of the connector for a batch of 1000 rows, step by step: decode, align, encode, sign.

use std::hint::black_box;

use bytes::{BufMut, Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use elven_sync::align::{Clock, Number, Zone, Zones};
use elven_sync::batch::Batch;
use elven_sync::elven::client::IMPORT_PATH;
use elven_sync::elven::signing::sign;
use elven_sync::ledger::{Decoder, Row};
use secrecy::SecretString;

const ROWS: u16 = 1000;
const MINUTE_US: i64 = 60_000_000;

fn zone() -> Zone {
    Zones::bundled().get("Europe/Zurich").unwrap_or_else(|_| Zone::utc())
}

/// Instants in steps of 61 minutes, from 2020 on, so that both clock changes occur.
fn instants() -> Vec<i64> {
    (0..i64::from(ROWS)).map(|n| (20 * 365 * 24 * 60 + n * 61) * MINUTE_US).collect()
}

/// Balances of 1 to 5 groups of four digits, in the format of `numeric_send`, with two groups before the point.
fn balances() -> Vec<Vec<u8>> {
    let balance = |n: u16| {
        let groups = 1 + n % 5;
        let head = [groups, 1, 0, 4 * groups.saturating_sub(2)];
        let words = head.into_iter().chain((0..groups).map(|group| 1 + (n * 7 + group) % 9999));
        words.flat_map(u16::to_be_bytes).collect()
    };
    (0..ROWS).map(balance).collect()
}

/// The messages of a copy: a header with the first row, the other rows, the trailer.
fn messages() -> Vec<Bytes> {
    let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    let mut messages: Vec<Bytes> = Vec::new();
    for (n, (captured_at, balance)) in (0..ROWS).zip(instants().into_iter().zip(balances())) {
        let mut message = BytesMut::from(if n == 0 { &header[..] } else { &[] });
        let account = format!("8nfrslW3U7pIvQDT8nfrslW3U7pIvQDT-{}", 1000 + n);
        message.put_i16(6);
        let (xid, id, captured_at) =
            (7_u64.to_be_bytes(), i64::from(n).to_be_bytes(), captured_at.to_be_bytes());
        for field in [&xid[..], &id, account.as_bytes(), b"BTC", &captured_at, &balance] {
            message.put_u32(field.len().try_into().unwrap_or(u32::MAX));
            message.put_slice(field);
        }
        messages.push(message.freeze());
    }
    messages.push(Bytes::from_static(&[0xff, 0xff]));
    messages
}

fn decode(messages: Vec<Bytes>) -> Vec<Row> {
    let mut decoder = Decoder::new(true);
    messages.into_iter().filter_map(|message| decoder.row(message).ok().flatten()).collect()
}

fn micro(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1000 rows");
    group.throughput(Throughput::Elements(ROWS.into()));
    group.bench_function("page decode", |bencher| {
        bencher.iter_batched(messages, decode, BatchSize::SmallInput);
    });
    let instants = instants();
    group.bench_function("align: wall clock", |bencher| {
        let mut clock = Clock::of(&zone());
        bencher.iter(|| instants.iter().filter(|us| clock.at(black_box(**us)).is_ok()).count());
    });
    let balances = balances();
    group.bench_function("align: numbers", |bencher| {
        bencher.iter(|| {
            let mut out = Vec::with_capacity(32 * balances.len());
            for number in balances.iter().filter_map(|numeric| Number::read(black_box(numeric)).ok()) {
                number.write(&mut out);
            }
            out
        });
    });
    let rows = decode(messages());
    assert_eq!(rows.len(), usize::from(ROWS), "all rows can be decoded");
    let zone = zone();
    assert_eq!(zone.name(), "Europe/Zurich");
    let rules = zone.into();
    group.bench_function("encode: Batch::build", |bencher| {
        bencher.iter_batched(|| rows.clone(), |rows| Batch::build(None, rows, &rules), BatchSize::SmallInput);
    });
    group.finish();
    let secret = SecretString::from("secret");
    criterion.bench_function("sign", |bencher| {
        bencher.iter(|| sign(&secret, black_box(1_721_209_655_047), "POST", IMPORT_PATH));
    });
}

criterion_group!(benches, micro);
criterion_main!(benches);
