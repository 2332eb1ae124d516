//! Tests of batches.

use super::*;
use crate::align::{self, CurrencyKind, Number, Text, Zone};
use proptest::prelude::*;

fn row(xid: u64, id: i64, captured_at_us: i64, balance: &[u16]) -> Row {
    let numeric: Vec<u8> = balance.iter().flat_map(|word| word.to_be_bytes()).collect();
    Row::new(xid, LedgerId::Number(id), Some("acct"), Some("BTC"), Some(captured_at_us), Some(&numeric))
}

const ONE: &[u16] = &[1, 0, 0, 0, 1];
const TWO: &[u16] = &[1, 0, 0, 0, 2];
const NAN: &[u16] = &[0, 0, 0xC000, 0];

#[test]
fn a_batch_never_ends_inside_a_tie() {
    let rows = [row(1, 1, 0, ONE), row(1, 2, 0, ONE), row(1, 2, 0, ONE), row(1, 3, 0, ONE)];
    assert_eq!(cut(Order::ChangeXid, &rows, 4), Some(4));
    assert_eq!(cut(Order::ChangeXid, &rows, 3), Some(3));
    assert_eq!(cut(Order::ChangeXid, &rows, 2), Some(1), "ids 2 and 2 stay together");
    assert_eq!(cut(Order::ChangeXid, &rows[1..], 1), None, "two rows with one cursor do not fit");
}

#[test]
fn the_greater_captured_at_then_id_is_sent_and_the_other_counted() {
    for (rows, expected) in [
        ([row(1, 1, 0, ONE), row(1, 2, 5, TWO)], 2),
        ([row(1, 1, 5, ONE), row(1, 2, 0, TWO)], 1),
        ([row(1, 1, 0, ONE), row(1, 2, 0, TWO)], 2),
    ] {
        let batch = Batch::build(None, rows.to_vec(), &Zone::utc().into());
        assert_eq!((batch.rows.len(), batch.records.len(), batch.superseded), (2, 1, 1));
        let body = std::str::from_utf8(&batch.body).unwrap();
        assert_eq!(
            body,
            format!(
                r#"[{{"entityAccountId":"acct","currency":"BTC","datetime":"2000-01-01 00:00:00","balance":{expected}}}]"#
            )
        );
    }
}

#[test]
fn an_invalid_row_is_set_aside_and_the_rest_goes_on() {
    let batch = Batch::build(None, vec![row(1, 1, 0, NAN), row(1, 2, 0, TWO)], &Zone::utc().into());
    assert_eq!((batch.rows.len(), batch.records.len(), batch.superseded, batch.invalid.len()), (2, 1, 0, 1));
    assert_eq!(batch.invalid[0].id, LedgerId::Number(1));
    assert_eq!(batch.invalid[0].reason, "balance is NaN");
    let none = Batch::build(None, vec![row(1, 1, 0, NAN)], &Zone::utc().into());
    assert_eq!((none.records.len(), &none.body[..]), (0, &b"[]"[..]));
}

/// Accounts of the ledger that are one account at Elven.
fn renamed() -> RecordRules {
    let mut accounts = align::NameMap::default();
    accounts.add("acct", "elven", true);
    accounts.add("acct2", "elven", true);
    let names = align::Names { version: Some(1), accounts: accounts.into(), ..align::Names::default() };
    RecordRules { names: names.into(), ..Zone::utc().into() }
}

fn row_of(account: &str, id: i64, captured_at_us: i64) -> Row {
    let numeric: Vec<u8> = ONE.iter().flat_map(|word| word.to_be_bytes()).collect();
    Row::new(1, LedgerId::Number(id), Some(account), Some("BTC"), Some(captured_at_us), Some(&numeric))
}

#[test]
fn rows_of_two_names_with_one_key_are_all_invalid_and_no_part_sends_them() {
    let second = 1_000_000;
    let rows = vec![
        row_of("acct", 1, 0),
        row_of("acct", 2, 1),
        row_of("acct2", 3, 2),
        row_of("acct", 4, second),
        row_of("acct", 5, second + 1),
    ];
    let batch = Batch::build(None, rows, &renamed());
    assert_eq!((&batch.records[..], batch.superseded), (&[4][..], 1));
    let invalid: Vec<String> = batch.invalid.iter().map(|row| row.id.to_string()).collect();
    assert_eq!(invalid, ["1", "2", "3"]);
    assert!(batch.invalid[2].reason.starts_with("row 1 has"), "{}", batch.invalid[2].reason);
    assert_eq!(batch.superseded_rows().len(), 1);
    let [_, superseded] = batch.split_off_superseded().unwrap();
    assert_eq!(superseded.rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>(), ["4"]);
    // A newer row outside the batch with another name.
    let batch = Batch::build(None, vec![row_of("acct", 1, 0)], &renamed());
    let rival = row_of("acct2", 3, 2);
    assert!(batch.is_superseded_by(&rival));
    let beside = batch.with_newer_rows(vec![rival]);
    assert_eq!((beside.records.len(), beside.superseded, beside.invalid.len()), (0, 0, 1));
}

#[test]
fn close_ids_take_a_byte_each() {
    let ids: Vec<LedgerId> = (1000..1100).map(LedgerId::Number).collect();
    assert_eq!(pack_ids(ids.iter()).len(), 1 + 2 + 99);
}

#[test]
fn packed_ids_are_unpacked_as_they_were() {
    let numbers = [1, 2, 3, 64, 65, -1, -64, -65, 300, i64::MAX, i64::MIN, 0].map(LedgerId::Number);
    let texts = ["", "a", "ü", &"x".repeat(300)].map(|text| LedgerId::Text(text.to_owned()));
    for ids in [&numbers[..], &texts[..], &[]] {
        assert_eq!(unpack_ids(&pack_ids(ids.iter())).unwrap(), ids);
    }
    for broken in [&[][..], &[3, 1], &[1, 0x80], &[2, 5, b'a'], &[2, 1, 0xff]] {
        assert_eq!(unpack_ids(broken), None, "{broken:?}");
    }
}

/// Returns rows with one of a few accounts, currencies, instants and amounts.
fn any_row() -> impl Strategy<Value = Row> {
    let text = |texts: &'static [Option<&'static str>]| prop::sample::select(texts);
    let account = text(&[Some("a"), Some("b"), Some("ä\"\\"), Some(" "), Some("tab\t"), None]);
    let currency = text(&[Some("BTC"), Some("ETH"), Some("BTC"), None]);
    // One instant in the hour before clocks were put back in Zurich, and one in the hour after: the same wall-clock
    // time.
    let before = 783_302_400_000_000;
    let instants =
        [before, before + 1, before + 999_999, before + 3_600_000_000, before + 86_400_000_000, i64::MAX];
    let instant = prop::option::weighted(0.95, prop::sample::select(instants.to_vec()));
    let balances: [&[u16]; 5] = [ONE, TWO, NAN, &[6, 1, 0x4000, 0, 12, 3456, 7890, 1234, 5678, 9012], &[1]];
    let balance = prop::option::weighted(0.95, prop::sample::select(balances.to_vec()));
    (0u64..3, 0i64..5, account, currency, instant, balance).prop_map(
        |(xid, id, account, currency, at, balance)| {
            let numeric =
                balance.map(|words| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>());
            Row::new(xid, LedgerId::Number(id), account, currency, at, numeric.as_deref())
        },
    )
}

/// The forms of a record, each with the JSON of its source and the field of its currency.
fn forms() -> Vec<(RecordForm, &'static str, &'static str)> {
    let of = |currency_kind| RecordForm::V4 { source: Source::new("s \"é\"").unwrap(), currency_kind };
    let source = r#""sourceId":"s \"é\"","#;
    vec![
        (RecordForm::V3, "", "currency"),
        (of(CurrencyKind::Symbol), source, "symbol"),
        (of(CurrencyKind::AssetId), source, "assetID"),
    ]
}

proptest! {
    /// Compares a batch with its definition, which is computed here by comparing every row with all rows.
    #[test]
    fn of_each_key_the_newest_stands_where_the_first_stood(
        rows in prop::collection::vec(any_row(), 1..40),
        (form, source, field) in prop::sample::select(forms()),
    ) {
        let zone = crate::align::Zones::bundled().get("Europe/Zurich").unwrap();
        let read = |row: &Row| {
            let mut number = Vec::new();
            Number::read(row.balance()?).ok()?.write(&mut number);
            let local = Clock::of(&zone).at(row.captured_at_us?).ok()?;
            Text::read("account", row.account()).and(Text::read("currency", row.currency())).ok()?;
            let key = (row.account()?.to_owned(), row.currency()?.to_owned(), local);
            Some((key, String::from_utf8(number).unwrap()))
        };
        let key = |place: usize| read(&rows[place]).map(|(key, _)| key);
        let age = |place: usize| (rows[place].captured_at_us, &rows[place].id);
        let places = 0..rows.len();
        let is_first = |place: usize| !(0..place).any(|other| key(other) == key(place));
        let firsts = places.clone().filter(|&place| key(place).is_some() && is_first(place));
        // Of several rows with the same age, the first.
        let newest = |first: usize| {
            places.clone().filter(|&other| key(other) == key(first)).rev().max_by_key(|&other| age(other)).unwrap()
        };
        let records: Vec<usize> = firsts.map(newest).collect();
        let json = |&place: &usize| {
            let ((account, currency, local), number) = read(&rows[place]).unwrap();
            let [account, currency] = [account, currency].map(|name| serde_json::to_string(&name).unwrap());
            let datetime = local.format("%Y-%m-%d %H:%M:%S");
            format!(r#"{{"entityAccountId":{account},{source}"{field}":{currency},"datetime":"{datetime}","balance":{number}}}"#)
        };
        let body = format!("[{}]", records.iter().map(json).collect::<Vec<_>>().join(","));
        let invalid = places.clone().filter(|&place| key(place).is_none());
        let invalid: Vec<&LedgerId> = invalid.map(|place| &rows[place].id).collect();

        let batch = Batch::build(None, rows.clone(), &RecordRules { form, ..zone.clone().into() });
        prop_assert_eq!(std::str::from_utf8(&batch.body).unwrap(), &body);
        prop_assert_eq!(&batch.records, &records);
        prop_assert_eq!(batch.invalid.iter().map(|row| &row.id).collect::<Vec<_>>(), invalid);
        prop_assert_eq!(batch.superseded, rows.len() - records.len() - batch.invalid.len());
        let beyond = records.iter().filter(|&&place| align::exceeds_a_double(read(&rows[place]).unwrap().1.as_bytes()));
        prop_assert_eq!(batch.beyond_double, beyond.count());
        prop_assert_eq!(batch.keys.len(), records.len());
        prop_assert_eq!(batch.body_sha256, hex::encode(Sha256::digest(&body)));
    }
}
