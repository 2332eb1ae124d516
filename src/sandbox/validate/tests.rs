//! Tests of the refusals, and of the values that must be kept unchanged.

use super::*;

const GOOD: &str =
    r#"{"entityAccountId":"accountId123","currency":"BTC","datetime":"2023-01-01 01:01:01","balance":10.5}"#;

fn currencies() -> BTreeSet<String> {
    ["BTC", "ETH", "USD"].map(String::from).into()
}

fn refusal(body: &str) -> Refusal {
    let (accounts, currencies) = (["accountId123", "accountId456"].map(String::from).into(), currencies());
    let known = Known { accounts: Some(&accounts), currencies: &currencies, is_source: &|_| false };
    validate(body.as_bytes(), Version::V3, &known).expect_err(body)
}

/// Validates under rules that know every account.
fn accept(body: &str) -> Vec<Record<'_>> {
    let known = Known { accounts: None, currencies: &currencies(), is_source: &|_| false };
    validate(body.as_bytes(), Version::V3, &known).expect(body)
}

/// A batch of one good record with one piece of it replaced.
fn with(good: &str, replacement: &str) -> String {
    assert!(GOOD.contains(good), "{good}");
    format!("[{}]", GOOD.replace(good, replacement))
}

#[test]
fn documented_example_is_accepted() {
    let body = r#"[
        {"entityAccountId": "accountId123", "currency": "BTC", "datetime": "2023-01-01 01:01:01", "balance": 10.5},
        {"entityAccountId": "accountId456", "currency": "ETH", "datetime": "2023-01-02 02:02:02", "balance": 20}
    ]"#;
    let records = accept(body);
    assert_eq!(records.len(), 2);
    assert_eq!(
        records[1],
        Record {
            entity_account_id: "accountId456".into(),
            source: RecordSource::None,
            currency: "ETH".into(),
            currency_field: "currency",
            datetime: "2023-01-02 02:02:02".into(),
            balance: "20",
        }
    );
    assert!(matches!(records[0].entity_account_id, Cow::Borrowed(_)), "nothing to unescape, nothing copied");
}

#[test]
fn outer_shape() {
    let cases = [
        ("", Code::NotAnArray),
        ("[", Code::NotAnArray),
        ("null", Code::NotAnArray),
        (r#""[]""#, Code::NotAnArray),
        (GOOD, Code::NotAnArray),
        (&format!("[{GOOD},]"), Code::NotAnArray),
        (&format!("[{GOOD}]]"), Code::NotAnArray),
        (&format!("[{GOOD}] x"), Code::NotAnArray),
        (&format!("\u{feff}[{GOOD}]"), Code::NotAnArray),
        ("[]", Code::BatchEmpty),
        (" [ ] ", Code::BatchEmpty),
    ];
    for (body, code) in cases {
        let refusal = refusal(body);
        assert_eq!((refusal.code, refusal.index), (code, None), "{body}");
    }
    let invalid_utf8 = with("accountId123", "account").replace("account", "acc\u{1}").into_bytes();
    let invalid_utf8: Vec<u8> =
        invalid_utf8.iter().map(|byte| if *byte == 1 { 0xff } else { *byte }).collect();
    let known = Known { accounts: None, currencies: &currencies(), is_source: &|_| false };
    assert_eq!(validate(&invalid_utf8, Version::V3, &known).unwrap_err().code, Code::NotAnArray);
}

#[test]
fn record_shape() {
    let cases = [
        "[1]".to_owned(),
        "[null]".to_owned(),
        "[[]]".to_owned(),
        r#"[["accountId123","BTC","2023-01-01 01:01:01",10.5]]"#.to_owned(),
        "[{}]".to_owned(),
        with(r#""entityAccountId":"accountId123","#, ""),
        with(r#""currency":"BTC","#, ""),
        with(r#""datetime":"2023-01-01 01:01:01","#, ""),
        with(r#","balance":10.5"#, ""),
        with(r#""balance":10.5"#, r#""balance":10.5,"memo":"x""#),
        with(r#""balance":10.5"#, r#""balance":10.5,"balance":10.5"#),
        with(r#""currency":"BTC""#, r#""currency":"BTC","\u0063urrency":"BTC""#),
        with("entityAccountId", "entityaccountid"),
        with("entityAccountId", "entity_account_id"),
        with(r#""accountId123""#, "123"),
        with(r#""accountId123""#, "null"),
        with(r#""accountId123""#, r#"["accountId123"]"#),
        with(r#""accountId123""#, r#""\ud800""#),
        with(r#""BTC""#, "1"),
        with(r#""BTC""#, "null"),
        with(r#""2023-01-01 01:01:01""#, "20230101"),
        with(r#""2023-01-01 01:01:01""#, "null"),
    ];
    for body in cases {
        let refusal = refusal(&body);
        assert_eq!((refusal.code, refusal.index), (Code::RecordShape, Some(0)), "{body}: {refusal}");
    }
}

#[test]
fn accounts_and_currencies() {
    let cases = [
        (with("accountId123", ""), Code::AccountBlank),
        (with("accountId123", "  "), Code::AccountBlank),
        (with("accountId123", r"\t\u00a0\u3000"), Code::AccountBlank),
        (with("accountId123", "accountId789"), Code::AccountUnknown),
        (with("accountId123", "accountid123"), Code::AccountUnknown),
        (with("accountId123", "accountId123 "), Code::AccountUnknown),
        (with("BTC", ""), Code::CurrencyBlank),
        (with("BTC", r"\n"), Code::CurrencyBlank),
        (with("BTC", "btc"), Code::CurrencyUnknown),
        (with("BTC", "BTC "), Code::CurrencyUnknown),
        (with("BTC", "XXX"), Code::CurrencyUnknown),
    ];
    for (body, code) in cases {
        assert_eq!(refusal(&body).code, code, "{body}");
    }
    assert_eq!(accept(&with("accountId123", "any account"))[0].entity_account_id, "any account");
}

#[test]
fn datetimes() {
    let refused = [
        "",
        "2023-01-01",
        "2023-01-01T01:01:01",
        "2023-01-01 01:01:01Z",
        "2023-01-01 01:01:01.000",
        "2023-01-01 01:01",
        "2023-1-01 01:01:01",
        " 2023-01-01 01:01:01",
        "2023-01-01 01:01:01 ",
        "2023/01/01 01:01:01",
        "23-01-01 01:01:01",
        "12023-01-01 01:01:1",
        "-023-01-01 01:01:01",
        "+023-01-01 01:01:01",
        "0000-01-01 00:00:00",
        "2023-00-01 00:00:00",
        "2023-13-01 00:00:00",
        "2023-01-00 00:00:00",
        "2023-01-32 00:00:00",
        "2023-04-31 00:00:00",
        "2023-02-29 00:00:00",
        "1900-02-29 00:00:00",
        "2023-01-01 24:00:00",
        "2023-01-01 00:60:00",
        "2016-12-31 23:59:60",
        "２０２３-01-01 01:01:01",
        "٢٠٢٣-01-01 01:01",
    ];
    for datetime in refused {
        assert_eq!(refusal(&with("2023-01-01 01:01:01", datetime)).code, Code::Datetime, "{datetime}");
    }
    let accepted =
        ["0001-01-01 00:00:00", "9999-12-31 23:59:59", "2024-02-29 12:00:00", "2000-02-29 00:00:00"];
    for datetime in accepted {
        assert_eq!(accept(&with("2023-01-01 01:01:01", datetime))[0].datetime, datetime);
    }
}

#[test]
fn balances_that_are_no_numbers() {
    for balance in [r#""10.5""#, "null", "true", "false", "{}", "[1]", r#""""#] {
        let refusal = refusal(&with("10.5", balance));
        assert_eq!((refusal.code, refusal.index), (Code::Balance, Some(0)), "{balance}");
    }
    // Not JSON at all, so the body is at fault and no record can be named.
    for balance in ["NaN", "Infinity", "-", "+1", ".5", "1.", "01", "-01", "0x10", "1_000", "1,5", "1e", ""] {
        let refusal = refusal(&with("10.5", balance));
        assert_eq!((refusal.code, refusal.index), (Code::NotAnArray, None), "{balance}");
    }
}

/// A float would alter every one of these.
#[test]
fn the_text_of_a_number_is_kept() {
    let numbers = [
        "12345678901234567890123456789012345678",
        "-12345678901234567890.123456789012345678",
        "0.000000000000000001",
        "0.1000",
        "-0",
        "-0.0",
        "9007199254740993",
        "1e-18",
        "1E+400",
    ];
    for number in numbers {
        assert_eq!(accept(&with("10.5", number))[0].balance, number);
        assert_eq!(
            accept(&with("10.5", &format!(" {number} ")))[0].balance,
            number,
            "white space is not part of it"
        );
    }
    let long = "9".repeat(5_000);
    assert_eq!(accept(&with("10.5", &long))[0].balance, long);
}

#[test]
fn escapes_and_unicode_in_account_ids() {
    let cases = [
        (r#"a\"b\\c\/d"#, r#"a"b\c/d"#),
        (r"\u0041\u00e9\ud83d\ude00", "Aé😀"),
        ("konto-Å-账户-😀", "konto-Å-账户-😀"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ];
    for (json, expected) in cases {
        assert_eq!(accept(&with("accountId123", json))[0].entity_account_id, expected);
    }
    let escaped = with("BTC", r"\u0042TC");
    assert_eq!(accept(&escaped)[0].currency, "BTC", "an escape is another way to write the same letter");
}

#[test]
fn a_thousand_records_and_not_one_more() {
    let batch = |count: usize| format!("[{}]", vec![GOOD; count].join(","));
    assert_eq!(accept(&batch(1000)).len(), 1000);
    assert_eq!(count(batch(1000).as_bytes()), Ok(1000));

    let refused = refusal(&batch(1001));
    assert_eq!((refused.code, refused.index), (Code::BatchTooLong, None));
    assert!(refused.message.starts_with("1001 records"), "{refused}");
    assert_eq!(count(batch(1001).as_bytes()).unwrap_err().code, Code::BatchTooLong);
}

#[test]
fn the_first_record_at_fault_is_named() {
    let bad = GOOD.replace("BTC", "btc");
    let refused = refusal(&format!("[{GOOD},{GOOD},{bad},{bad}]"));
    assert_eq!((refused.code, refused.index), (Code::CurrencyUnknown, Some(2)));
    assert!(refused.to_string().starts_with("record 2 (counted from 0): currency \"btc\""), "{refused}");
}

/// Validates a record of version 4, in a sandbox with one source.
fn of_version_4(record: &str) -> Result<(RecordSource<'_>, String, &'static str), Code> {
    let known = Known { accounts: None, currencies: &currencies(), is_source: &|id| id == "s-1" };
    let mut records: Vec<Record<'_>> =
        validate(record.as_bytes(), Version::V4, &known).map_err(|refusal| refusal.code)?;
    let record = records.pop().unwrap();
    Ok((record.source, record.currency.into_owned(), record.currency_field))
}

#[test]
fn a_record_of_version_4_names_its_source_and_its_asset() {
    let record = |fields: &str| {
        format!(r#"[{{"entityAccountId":"a",{fields}"datetime":"2023-01-01 01:01:01","balance":1}}]"#)
    };
    let named = || RecordSource::Named("s-1".into());
    for (fields, expected) in [
        (r#""sourceId":"s-1","symbol":"BTC","#, Ok((named(), "BTC".to_owned(), "symbol"))),
        (r#""sourceId":"s-1","assetID":"ETH","#, Ok((named(), "ETH".to_owned(), "assetID"))),
        (r#""sourceId":"s-1","symbol":"no","assetID":"ETH","#, Ok((named(), "ETH".to_owned(), "assetID"))),
        (r#""symbol":"BTC","#, Ok((RecordSource::Missing, "BTC".to_owned(), "symbol"))),
        (r#""sourceId":"s-2","symbol":"BTC","#, Err(Code::SourceUnknown)),
        (r#""sourceId":"","symbol":"BTC","#, Err(Code::SourceUnknown)),
        (r#""sourceId":1,"symbol":"BTC","#, Err(Code::RecordShape)),
        (r#""sourceId":"s-1","#, Err(Code::RecordShape)),
        (r#""sourceId":"s-1","currency":"BTC","#, Err(Code::RecordShape)),
        (r#""sourceId":"s-1","assetId":"BTC","#, Err(Code::RecordShape)),
        (r#""sourceId":"s-1","symbol":"btc","#, Err(Code::CurrencyUnknown)),
        (r#""sourceId":"s-1","symbol":" ","#, Err(Code::CurrencyBlank)),
        (r#""sourceId":"s-1","symbol":7,"assetID":"ETH","#, Err(Code::RecordShape)),
    ] {
        assert_eq!(of_version_4(&record(fields)), expected, "{fields}");
    }
    assert_eq!(refusal(&record(r#""sourceId":"s-1","symbol":"BTC","#)).code, Code::RecordShape, "version 3");
}
