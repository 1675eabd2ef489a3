//! Verification of a writer's chain: pure, over rows, anchors and tombstones, wherever they were read from.
//!
//! It believes nothing that it can compute: hashes and columns follow from the bytes, signatures from the key that the
//! caller trusts. It never says that something is anchored whose signature it has not verified.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::chain::{self, Columns, Hash, RowsDigest, hex, unhex};
use super::statement::{self, Anchor, Statement, Tombstone};
use crate::api::Envelope;

/// Findings that a report lists; more are counted.
const LISTED: usize = 20;

/// One row of the chain, as the database has it and as `GET /admin/audit/records` sends it (one JSON object a line).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// Sequence number.
    pub seq: u64,
    /// Hash of the chain up to and including this row, hex.
    pub hash: String,
    /// The record's JSON, byte for byte; absent where retention took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The columns by which it is found; absent where retention took them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Hash of the body, hex, where retention took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_hash: Option<String>,
    /// Number of the tombstone that covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<u64>,
}

/// What is known of a chain besides its rows, as `GET /admin/audit/anchors` sends it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatements {
    /// Who writes the chain.
    pub writer: String,
    /// Its anchors, oldest first.
    #[serde(default)]
    pub anchors: Vec<Envelope>,
    /// Its tombstones, oldest first.
    #[serde(default)]
    pub tombstones: Vec<Envelope>,
    /// Record after which this copy of the chain begins, and its hash: of a replica's journal, what PostgreSQL has is taken away.
    #[serde(skip)]
    pub begins_after: Option<(u64, Hash)>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The record that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What retention took away, as its tombstone says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenAway {
    /// Number of the tombstone.
    pub number: u64,
    /// Namespace.
    pub tenant: String,
    /// How many records.
    pub records: u64,
    /// The first of them.
    pub from_seq: u64,
    /// The last of them.
    pub to_seq: u64,
    /// Everything was older than this.
    pub before: Timestamp,
    /// When it was done.
    pub time: Timestamp,
    /// Who did it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// The verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Who wrote the chain.
    pub writer: String,
    /// Whether nothing is wrong.
    pub ok: bool,
    /// Record after which this copy of the chain begins; what was before it has to be verified in PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_after: Option<u64>,
    /// Rows that were read.
    pub records: u64,
    /// Sequence number of the first.
    pub from_seq: Option<u64>,
    /// Sequence number of the last.
    pub to_seq: Option<u64>,
    /// Hash of the chain at its end, hex.
    pub head: String,
    /// Whether a key was given, so that signatures were verified.
    pub signatures_verified: bool,
    /// Up to here a verified anchor agrees with the chain.
    pub anchored_seq: Option<u64>,
    /// When that anchor was signed.
    pub anchored_at: Option<Timestamp>,
    /// Records after it: their loss would not be noticed by it.
    pub not_anchored: u64,
    /// Anchors that agree with the chain.
    pub anchors: u64,
    /// Rows whose content retention took away.
    pub taken_away: u64,
    /// How they were taken away.
    pub tombstones: Vec<TakenAway>,
    /// How much is wrong.
    pub problems: u64,
    /// The first of it.
    pub findings: Vec<Finding>,
}

/// Verifies rows (in order of seq, from 1) against anchors and tombstones. `key` is the installation's public key, from a
/// place that the database's owner can't change; without it signatures stay unverified and nothing counts as anchored.
pub fn verify(rows: impl IntoIterator<Item = AuditRow>, said: &AuditStatements, key: Option<&VerifyingKey>) -> Report {
    let mut verifier = Verifier::new(said, key);
    for row in rows {
        verifier.row(&row);
    }
    verifier.finish()
}

struct Covered {
    tombstone: Tombstone,
    digest: RowsDigest,
    rows: u64,
}

/// The same, row by row, for chains that don't fit in memory.
pub struct Verifier {
    report: Report,
    /// Seq and hash up to which the chain was read.
    at: (u64, Hash),
    anchors: BTreeMap<u64, Vec<Anchor>>,
    tombstones: BTreeMap<u64, Covered>,
    begins_after: Option<(u64, Hash)>,
    /// The most tombstones that an anchor counted.
    tombstones_counted: u64,
}

impl Verifier {
    /// Reads what is said of the chain; what can't be read or verified is a finding.
    pub fn new(said: &AuditStatements, key: Option<&VerifyingKey>) -> Self {
        let report = Report {
            writer: said.writer.clone(),
            begins_after: said.begins_after.map(|(seq, _)| seq),
            signatures_verified: key.is_some(),
            ..Default::default()
        };
        let mut it = Self {
            report,
            at: said.begins_after.unwrap_or_else(|| (0, chain::genesis(&said.writer))),
            anchors: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            begins_after: said.begins_after,
            tombstones_counted: 0,
        };
        for (i, envelope) in said.anchors.iter().enumerate() {
            let Some(anchor) = it.open::<Anchor>(i, envelope, key) else { continue };
            if anchor.writer != said.writer {
                it.finding(None, format!("anchor {}: it is of writer {}, not {}", i + 1, anchor.writer, said.writer));
                continue;
            }
            it.tombstones_counted = it.tombstones_counted.max(anchor.tombstones);
            it.anchors.entry(anchor.seq).or_default().push(anchor);
        }
        for (i, envelope) in said.tombstones.iter().enumerate() {
            let Some(tombstone) = it.open::<Tombstone>(i, envelope, key) else { continue };
            let expected = i as u64 + 1;
            if tombstone.writer != said.writer || tombstone.number != expected {
                let what = format!(
                    "tombstone {expected}: it is number {} of writer {}, a tombstone was removed or replaced",
                    tombstone.number, tombstone.writer
                );
                it.finding(None, what);
            }
            let covered = Covered { tombstone, digest: RowsDigest::default(), rows: 0 };
            it.tombstones.insert(covered.tombstone.number, covered);
        }
        it
    }

    fn open<S: Statement>(&mut self, i: usize, envelope: &Envelope, key: Option<&VerifyingKey>) -> Option<S> {
        statement::open(envelope, key)
            .map_err(|error| self.finding(None, format!("{} {}: {error}", S::NAME, i + 1)))
            .ok()
    }

    fn finding(&mut self, seq: Option<u64>, what: impl Into<String>) {
        self.report.problems += 1;
        if self.report.findings.len() < LISTED {
            self.report.findings.push(Finding { seq, what: what.into() });
        }
    }

    /// Reads the next row.
    pub fn row(&mut self, row: &AuditRow) {
        let (last, previous) = self.at;
        let expected = last.saturating_add(1);
        let seq = row.seq;
        self.report.records += 1;
        self.report.from_seq.get_or_insert(seq);
        self.report.to_seq = Some(self.report.to_seq.map_or(seq, |to| to.max(seq)));
        if seq < expected {
            self.finding(Some(seq), format!("the record comes after record {last}: they were reordered or repeated"));
            return;
        }
        if seq > expected {
            let missing = if seq == expected + 1 {
                format!("record {expected} is")
            } else {
                format!("records {expected} to {} are", seq - 1)
            };
            self.finding(Some(expected), format!("{missing} missing, and no tombstone stands for them"));
        }
        let stored = unhex(&row.hash);
        let body = self.content(row);
        if seq == expected {
            let computed = body.map(|body| chain::link(&previous, seq, &body));
            if computed.is_some() && computed != stored {
                self.finding(
                    Some(seq),
                    "the hash does not follow from the record and the hash before it: the record, its place or a hash was changed",
                );
            }
        }
        if stored.is_none() && body.is_none() {
            self.finding(Some(seq), "the hash is not 64 hex digits");
        }
        // What comes after is judged by itself, so that one change is one finding.
        self.at = (seq, stored.unwrap_or(previous));
        for anchor in self.anchors.remove(&seq).unwrap_or_default() {
            self.anchored(&anchor, &row.hash);
        }
    }

    /// Hash of the row's body, with what is wrong with the content.
    fn content(&mut self, row: &AuditRow) -> Option<Hash> {
        let seq = row.seq;
        let Some(body) = &row.body else { return self.taken_away(row) };
        if row.tombstone.is_some() || row.body_hash.is_some() {
            self.finding(Some(seq), "a tombstone covers the record, but its content is still there");
        }
        match (Columns::derive(body.as_bytes()), &row.columns) {
            (Err(error), _) => self.finding(Some(seq), format!("the record can't be read: {error}")),
            (Ok(_), None) => self.finding(Some(seq), "the columns by which the record is found are gone: it is hidden"),
            (Ok(derived), Some(columns)) => {
                if let Some(column) = derived.difference(columns) {
                    self.finding(Some(seq), format!("column {column} is not what the record says"));
                }
            }
        }
        Some(chain::body_hash(body.as_bytes()))
    }

    fn taken_away(&mut self, row: &AuditRow) -> Option<Hash> {
        let body_hash = row.body_hash.as_deref().and_then(unhex);
        let covered = row.tombstone.and_then(|number| self.tombstones.get_mut(&number));
        match (covered, &body_hash) {
            (Some(covered), Some(hash)) => {
                covered.digest.add(row.seq, hash);
                covered.rows += 1;
                self.report.taken_away += 1;
            }
            (None, _) => self.finding(Some(row.seq), "the record's content is gone, and no tombstone stands for it"),
            (Some(_), None) => self.finding(Some(row.seq), "the record's content is gone, and so is its hash"),
        }
        if row.columns.is_some() {
            self.finding(Some(row.seq), "the record's content is gone, but its columns are still there");
        }
        body_hash
    }

    fn anchored(&mut self, anchor: &Anchor, hash: &str) {
        if anchor.head != hash {
            let what =
                format!("the anchor signed at {} has another hash: the chain was rewritten after it", anchor.time);
            self.finding(Some(anchor.seq), what);
            return;
        }
        self.report.anchors += 1;
        if self.report.signatures_verified && self.report.anchored_seq.is_none_or(|seq| seq <= anchor.seq) {
            self.report.anchored_seq = Some(anchor.seq);
            self.report.anchored_at = Some(anchor.time);
        }
    }

    /// The verdict.
    pub fn finish(mut self) -> Report {
        let (last, head) = self.at;
        for (seq, anchors) in std::mem::take(&mut self.anchors) {
            for anchor in anchors {
                if seq == 0 {
                    self.anchored(&anchor, &hex(&chain::genesis(&self.report.writer)));
                } else if let Some((_, hash)) = self.begins_after.filter(|(begins, _)| *begins == seq) {
                    self.anchored(&anchor, &hex(&hash));
                } else if seq > last {
                    let what = format!(
                        "the anchor signed at {} covers {seq} records, but the chain ends at {last}: its end was cut",
                        anchor.time
                    );
                    self.finding(Some(last + 1), what);
                }
                // Else its record is missing, which was said already.
            }
        }
        let known = self.tombstones.len() as u64;
        if self.tombstones_counted > known {
            let counted = self.tombstones_counted;
            self.finding(None, format!("an anchor counted {counted} tombstones, but there are {known}"));
        }
        for (number, covered) in std::mem::take(&mut self.tombstones) {
            let Covered { tombstone: t, digest, rows } = covered;
            // Of a copy that begins later some of its rows are not here.
            let whole = self.begins_after.is_none_or(|(begins, _)| t.from_seq > begins);
            if whole && (rows != t.rows || digest.finish() != t.rows_digest) {
                let what = format!(
                    "tombstone {number} was signed for {} other records than the {rows} that refer to it",
                    t.rows
                );
                self.finding(Some(t.from_seq), what);
            }
            self.report.tombstones.push(TakenAway {
                number,
                tenant: t.tenant,
                records: t.rows,
                from_seq: t.from_seq,
                to_seq: t.to_seq,
                before: t.before,
                time: t.time,
                by: t.by,
                reason: t.reason,
            });
        }
        self.report.head = hex(&head);
        self.report.not_anchored = last - self.report.anchored_seq.unwrap_or(0).min(last);
        self.report.ok = self.report.problems == 0;
        self.report
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::store::testing;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    /// A good chain of `n` records, anchored at its end.
    fn chain_of(n: u64) -> (Vec<AuditRow>, AuditStatements) {
        let mut hash = chain::genesis("w");
        let rows: Vec<_> = (1..=n)
            .map(|seq| {
                let record = testing::record("acme", seq);
                let body = serde_json::to_string(&record).unwrap();
                hash = chain::link(&hash, seq, &chain::body_hash(body.as_bytes()));
                AuditRow {
                    seq,
                    hash: hex(&hash),
                    body: Some(body),
                    columns: Some(Columns::from(record)),
                    body_hash: None,
                    tombstone: None,
                }
            })
            .collect();
        let anchor = Anchor::new("w", n, &hash, n, 0, Timestamp::UNIX_EPOCH);
        let anchors = vec![statement::sign(&anchor, &key()).unwrap()];
        (rows, AuditStatements { writer: "w".into(), anchors, tombstones: vec![], begins_after: None })
    }

    fn check(rows: Vec<AuditRow>, said: &AuditStatements) -> Report {
        verify(rows, said, Some(&key().verifying_key()))
    }

    /// Takes rows away as retention does.
    fn take_away(rows: &mut [AuditRow], said: &mut AuditStatements, taken: &[u64]) {
        let number = said.tombstones.len() as u64 + 1;
        let mut digest = RowsDigest::default();
        for row in rows.iter_mut().filter(|row| taken.contains(&row.seq)) {
            let hash = chain::body_hash(row.body.take().unwrap().as_bytes());
            digest.add(row.seq, &hash);
            row.columns = None;
            row.body_hash = Some(hex(&hash));
            row.tombstone = Some(number);
        }
        let tombstone = Tombstone {
            format_version: "1".into(),
            writer: "w".into(),
            number,
            tenant: "acme".into(),
            reason: "retention".into(),
            by: "remit".into(),
            before: Timestamp::UNIX_EPOCH,
            time: Timestamp::UNIX_EPOCH,
            rows: taken.len() as u64,
            from_seq: taken[0],
            to_seq: taken[taken.len() - 1],
            rows_digest: digest.finish(),
        };
        said.tombstones.push(statement::sign(&tombstone, &key()).unwrap());
    }

    fn first(report: &Report) -> (Option<u64>, &str) {
        assert!(!report.ok);
        (report.findings[0].seq, report.findings[0].what.as_str())
    }

    #[test]
    fn a_good_chain_is_ok_and_anchored() {
        let (rows, said) = chain_of(5);
        let report = check(rows, &said);
        assert!(report.ok, "{:?}", report.findings);
        assert_eq!((report.records, report.anchored_seq, report.not_anchored), (5, Some(5), 0));
        assert_eq!((report.from_seq, report.to_seq), (Some(1), Some(5)));
    }

    #[test]
    fn an_empty_chain_is_ok() {
        let (rows, said) = chain_of(0);
        assert!(check(rows, &said).ok);
    }

    #[test]
    fn records_after_the_anchor_count_as_not_anchored() {
        let (rows, _) = chain_of(7);
        let (_, said) = chain_of(5);
        let report = check(rows, &said);
        assert!(report.ok, "{:?}", report.findings);
        assert_eq!((report.anchored_seq, report.not_anchored), (Some(5), 2));
    }

    #[test]
    fn a_changed_byte_is_found() {
        let (mut rows, said) = chain_of(5);
        rows[2].body = Some(rows[2].body.take().unwrap().replace("\"risk\":0", "\"risk\":3"));
        let report = check(rows, &said);
        assert!(matches!(first(&report), (Some(3), what) if what.contains("hash does not follow")));
        assert_eq!(report.problems, 1, "what follows is sound: {:?}", report.findings);
    }

    #[test]
    fn a_changed_byte_with_all_later_hashes_made_anew_is_found_by_the_anchor() {
        let (mut rows, said) = chain_of(5);
        let mut hash = chain::genesis("w");
        for row in &mut rows {
            if row.seq == 3 {
                row.body = Some(row.body.take().unwrap().replace("\"risk\":0", "\"risk\":3"));
            }
            hash = chain::link(&hash, row.seq, &chain::body_hash(row.body.as_ref().unwrap().as_bytes()));
            row.hash = hex(&hash);
        }
        assert!(matches!(first(&check(rows, &said)), (Some(5), what) if what.contains("rewritten")));
    }

    #[test]
    fn a_cut_tail_is_found_by_the_anchor() {
        let (mut rows, said) = chain_of(5);
        rows.truncate(3);
        assert!(matches!(first(&check(rows, &said)), (Some(4), what) if what.contains("its end was cut")));
    }

    #[test]
    fn a_missing_middle_is_found() {
        let (mut rows, said) = chain_of(5);
        rows.remove(2);
        assert!(matches!(first(&check(rows, &said)), (Some(3), what) if what.contains("record 3 is missing")));
    }

    #[test]
    fn a_missing_middle_that_was_numbered_anew_is_found() {
        let (mut rows, said) = chain_of(5);
        rows.remove(2);
        (1..).zip(&mut rows).for_each(|(seq, row)| row.seq = seq);
        assert!(matches!(first(&check(rows, &said)), (Some(3), what) if what.contains("hash does not follow")));
    }

    #[test]
    fn reordering_is_found() {
        let (mut rows, said) = chain_of(5);
        rows.swap(1, 2);
        assert!(!check(rows, &said).ok);
        let (mut rows, said) = chain_of(5);
        rows.swap(1, 2);
        (1..).zip(&mut rows).for_each(|(seq, row)| row.seq = seq);
        assert!(matches!(first(&check(rows, &said)), (Some(2), what) if what.contains("hash does not follow")));
    }

    #[test]
    fn an_edited_column_is_found() {
        type Edit = fn(&mut Columns);
        let edits: [(&str, Edit); 9] = [
            ("id", |c| c.id.push('x')),
            ("time", |c| c.time += 1),
            ("tenant", |c| c.tenant = "other".into()),
            ("agent", |c| c.agent = "other".into()),
            ("delegator", |c| c.delegator = Some("user:x".into())),
            ("session", |c| c.session = Some("s".into())),
            ("action", |c| c.action = "other".into()),
            ("outcome", |c| c.outcome = "deny".into()),
            ("rollout", |c| c.rollout = Some(crate::store::RolloutColumns::default())),
        ];
        for (name, edit) in edits {
            let (mut rows, said) = chain_of(3);
            edit(rows[1].columns.as_mut().unwrap());
            let report = check(rows, &said);
            assert_eq!(first(&report), (Some(2), format!("column {name} is not what the record says").as_str()));
        }
        let (mut rows, said) = chain_of(3);
        rows[1].columns = None;
        assert!(matches!(first(&check(rows, &said)), (Some(2), what) if what.contains("hidden")));
    }

    #[test]
    fn an_anchor_of_another_key_or_writer_does_not_count() {
        let (rows, said) = chain_of(2);
        let other = SigningKey::from_bytes(&[1; 32]);
        let report = verify(rows.clone(), &said, Some(&other.verifying_key()));
        assert!(!report.ok && report.anchored_seq.is_none());
        let elsewhere = Anchor::new("other", 2, &[0; 32], 2, 0, Timestamp::UNIX_EPOCH);
        let said = AuditStatements { anchors: vec![statement::sign(&elsewhere, &key()).unwrap()], ..said };
        assert!(matches!(first(&check(rows, &said)), (None, what) if what.contains("of writer other")));
    }

    #[test]
    fn without_a_key_nothing_counts_as_anchored() {
        let (rows, said) = chain_of(2);
        let report = verify(rows, &said, None);
        assert!(report.ok);
        assert_eq!((report.anchored_seq, report.not_anchored, report.signatures_verified), (None, 2, false));
    }

    #[test]
    fn retention_with_a_tombstone_passes_and_is_told() {
        let (mut rows, mut said) = chain_of(6);
        take_away(&mut rows, &mut said, &[1, 2, 4]);
        take_away(&mut rows, &mut said, &[6]);
        let report = check(rows, &said);
        assert!(report.ok, "{:?}", report.findings);
        assert_eq!(report.taken_away, 4);
        assert_eq!((report.tombstones[0].records, report.tombstones[0].to_seq), (3, 4));
    }

    #[test]
    fn taking_away_without_a_tombstone_is_found() {
        let (mut rows, mut said) = chain_of(4);
        take_away(&mut rows, &mut said, &[2]);
        said.tombstones.clear();
        assert!(matches!(first(&check(rows, &said)), (Some(2), what) if what.contains("no tombstone stands for it")));
    }

    #[test]
    fn a_tombstone_covers_no_other_rows() {
        let (mut rows, mut said) = chain_of(4);
        take_away(&mut rows, &mut said, &[2]);
        let mut more = said.clone();
        take_away(&mut rows, &mut more, &[3]);
        rows[2].tombstone = Some(1);
        assert!(matches!(first(&check(rows, &said)), (Some(2), what) if what.contains("tombstone 1 was signed for")));
    }

    #[test]
    fn a_tombstone_that_an_anchor_counted_must_be_there() {
        let (rows, mut said) = chain_of(2);
        let hash = unhex(&rows[1].hash).unwrap();
        let anchor = Anchor::new("w", 2, &hash, 1, 1, Timestamp::UNIX_EPOCH);
        said.anchors.push(statement::sign(&anchor, &key()).unwrap());
        assert!(matches!(first(&check(rows, &said)), (None, what) if what.contains("counted 1 tombstones")));
    }

    #[test]
    fn a_chain_passes_as_no_other_writers() {
        let (rows, said) = chain_of(2);
        let report = check(rows, &AuditStatements { writer: "x".into(), anchors: vec![], ..said });
        assert!(matches!(first(&report), (Some(1), _)));
    }
}
