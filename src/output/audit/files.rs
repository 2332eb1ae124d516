//! The evidence of an audit as CSV files in a folder, with a manifest of their hashes.
//!
//! The manifest is written last, and under its name only when it is whole: a folder with a manifest is complete.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::csv;
use super::columns::{
    ACTIONS, BATCHES, EXCEPTIONS, FINDINGS, POPULATION, SENT, TOTALS, action_fields, batch_fields,
    exception_fields, population_fields, total_fields,
};
use super::{json, text};
use crate::audit::{AuditedBatch, AuditedRow, EntityAudit, Evidence, EvidenceSink, Outcome, PeriodAudit};
use crate::journal::period::{PersonsAction, RowException};
use crate::text::{escaped_json, quoted};

/// The file with the hashes of the others, as `sha256sum -c` reads it.
const MANIFEST: &str = "manifest.sha256";

/// The files of an audit.
#[derive(Debug)]
pub struct AuditFiles {
    folder: PathBuf,
    /// The folder did not exist before.
    is_new: bool,
    population: CsvFile,
    batches: CsvFile,
    exceptions: CsvFile,
    actions: CsvFile,
    /// The entity whose evidence began last.
    entity_id: Option<String>,
    /// The first failure to write.
    failure: Option<io::Error>,
}

/// A CSV file that can be cut back to where the evidence of an entity began.
#[derive(Debug)]
struct CsvFile {
    name: &'static str,
    file: BufWriter<File>,
    written: u64,
    mark: u64,
}

impl CsvFile {
    fn create(folder: &Path, name: &'static str, header: &[&str]) -> io::Result<Self> {
        let file = BufWriter::new(File::create_new(folder.join(name))?);
        let mut file = Self { name, file, written: 0, mark: 0 };
        file.record(header.iter().map(|field| Some(*field)))?;
        Ok(file)
    }

    fn record<'f>(&mut self, fields: impl IntoIterator<Item = Option<&'f str>>) -> io::Result<()> {
        let record = csv::record(fields);
        self.file.write_all(record.as_bytes())?;
        self.written += record.len() as u64;
        Ok(())
    }

    fn strings(&mut self, fields: &[Option<String>]) -> io::Result<()> {
        self.record(fields.iter().map(Option::as_deref))
    }

    /// Begins the evidence of an entity. `again`: what was written of it is cut off.
    fn begin(&mut self, again: bool) -> io::Result<()> {
        if !again {
            self.mark = self.written;
            return Ok(());
        }
        self.file.flush()?;
        let file = self.file.get_mut();
        file.set_len(self.mark)?;
        file.seek(SeekFrom::Start(self.mark))?;
        self.written = self.mark;
        Ok(())
    }

    /// Writes everything to the disk.
    fn close(&mut self) -> io::Result<&'static str> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(self.name)
    }
}

impl AuditFiles {
    /// Creates the files in a folder, which must be empty or new.
    ///
    /// # Errors
    /// The folder has files, or cannot be written.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        let shown = quoted(&folder.to_string_lossy());
        let is_new = !folder.exists();
        if !is_new {
            let mut entries = fs::read_dir(folder).map_err(|problem| {
                anyhow::Error::new(problem).context(format!("--csv {shown} is no folder"))
            })?;
            if entries.next().is_some() {
                anyhow::bail!("--csv {shown}: the folder is not empty; hint: give a new folder");
            }
        }
        let create = || {
            fs::create_dir_all(folder)?;
            Ok::<_, io::Error>(Self {
                folder: folder.to_owned(),
                is_new,
                population: CsvFile::create(folder, "population.csv", &POPULATION)?,
                batches: CsvFile::create(folder, "batches.csv", &BATCHES)?,
                exceptions: CsvFile::create(folder, "exceptions.csv", &EXCEPTIONS)?,
                actions: CsvFile::create(folder, "actions.csv", &ACTIONS)?,
                entity_id: None,
                failure: None,
            })
        };
        create().map_err(|problem| {
            anyhow::Error::new(problem).context(format!("the files of --csv {shown} cannot be created"))
        })
    }

    /// Writes the totals, the summaries and, at last, the manifest.
    ///
    /// # Errors
    /// A file could not be written. Then there is no manifest.
    pub fn finish(&mut self, audit: &PeriodAudit) -> anyhow::Result<()> {
        let shown = quoted(&self.folder.to_string_lossy());
        self.write_rest(audit).map_err(|problem| {
            anyhow::Error::new(problem).context(format!("the files of --csv {shown} could not be written"))
        })
    }

    fn write_rest(&mut self, audit: &PeriodAudit) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut names = Vec::new();
        for file in [&mut self.population, &mut self.batches, &mut self.exceptions, &mut self.actions] {
            names.push(file.close()?);
        }
        let mut totals = CsvFile::create(&self.folder, "totals.csv", &TOTALS)?;
        let mut sent = CsvFile::create(&self.folder, "sent.csv", &SENT)?;
        let mut findings = CsvFile::create(&self.folder, "findings.csv", &FINDINGS)?;
        for entity in &audit.entities {
            write_totals(entity, &mut totals, &mut sent)?;
            write_findings(entity, &mut findings)?;
        }
        for file in [&mut totals, &mut sent, &mut findings] {
            names.push(file.close()?);
        }
        let json = format!("{}\n", escaped_json(&json::document(audit)));
        let text = format!("{}\n", text::document(audit, false));
        for (name, content) in [("summary.json", json), ("summary.txt", text)] {
            self.whole(name, content.as_bytes())?;
            names.push(name);
        }
        names.sort_unstable();
        let mut manifest = String::new();
        for name in names {
            // Writing to a String cannot fail.
            let _ = writeln!(manifest, "{}  {name}", sha256(&self.folder.join(name))?);
        }
        let unfinished = format!("{MANIFEST}.unfinished");
        self.whole(&unfinished, manifest.as_bytes())?;
        fs::rename(self.folder.join(unfinished), self.folder.join(MANIFEST))?;
        File::open(&self.folder)?.sync_all()
    }

    fn whole(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = File::create_new(self.folder.join(name))?;
        file.write_all(content)?;
        file.sync_all()
    }

    /// Removes the files of an audit that failed, so that the folder can be given again.
    pub fn remove(self) {
        for file in [&self.population, &self.batches, &self.exceptions, &self.actions] {
            // They have no manifest, so nobody takes them for evidence.
            let _ = fs::remove_file(self.folder.join(file.name));
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.folder);
        }
    }

    /// Says where the files are, and how to check them.
    pub(super) fn said(&self) -> String {
        let folder = quoted(&self.folder.to_string_lossy());
        format!("The evidence is in {folder}.\nhint: cd {folder} && sha256sum -c {MANIFEST}")
    }

    fn keep(&mut self, written: io::Result<()>) {
        if let Err(problem) = written {
            self.failure.get_or_insert(problem);
        }
    }
}

impl EvidenceSink for AuditFiles {
    fn begin(&mut self, entity_id: &str) {
        let again = self.entity_id.as_deref() == Some(entity_id);
        self.entity_id = Some(entity_id.to_owned());
        for begun in [self.population.begin(again), self.batches.begin(again), self.exceptions.begin(again)] {
            self.keep(begun);
        }
    }

    fn row(&mut self, row: &AuditedRow<'_>) {
        let written = self.population.strings(&population_fields(row));
        self.keep(written);
    }

    fn batch(&mut self, entity_id: &str, batch: &AuditedBatch) {
        let written = self.batches.strings(&batch_fields(entity_id, batch));
        self.keep(written);
    }

    fn exception(&mut self, error: &RowException) {
        let written = self.exceptions.strings(&exception_fields(error));
        self.keep(written);
    }

    fn action(&mut self, action: &PersonsAction) {
        let written = self.actions.strings(&action_fields(action));
        self.keep(written);
    }
}

fn write_totals(entity: &EntityAudit, totals: &mut CsvFile, sent: &mut CsvFile) -> io::Result<()> {
    let entity_id = &entity.entity_id;
    for (names, of_outcomes) in &entity.totals.by_outcome {
        for (outcome, total) in Outcome::ALL.iter().zip(of_outcomes).filter(|(_, total)| total.rows > 0) {
            totals.strings(&total_fields(entity_id, names, outcome.name(), total))?;
        }
    }
    for ((account, currency), total) in &entity.totals.proven {
        let names = (Some(account.clone()), Some(currency.clone()));
        sent.strings(&total_fields(entity_id, &names, Evidence::Proven.name(), total))?;
    }
    for (names, of_evidence) in &entity.totals.by_evidence {
        let others = Evidence::ALL.iter().zip(of_evidence);
        for (evidence, total) in others.filter(|(evidence, _)| **evidence != Evidence::Proven) {
            if total.rows > 0 {
                sent.strings(&total_fields(entity_id, names, evidence.name(), total))?;
            }
        }
    }
    Ok(())
}

fn write_findings(entity: &EntityAudit, findings: &mut CsvFile) -> io::Result<()> {
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    for finding in &entity.proof.findings {
        findings.strings(&[
            Some(entity.entity_id.clone()),
            Some(finding.what.to_owned()),
            number(finding.pass_id),
            number(finding.batch_id),
            Some(finding.ledger_ids.join(" ")),
            Some(finding.message.clone()),
        ])?;
    }
    Ok(())
}

fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut part) = (File::open(path)?, Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex::encode(hash.finalize())),
            length => hash.update(&part[..length]),
        }
    }
}
