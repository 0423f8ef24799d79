//! The agreement: what all processes on one engine go by, kept in Milvus' own metadata.
//!
//! It is a line of records, numbered from 1. A record is the description of a Milvus collection that holds nothing,
//! and becomes the next of the line by the alias of its number. An alias can be made only once, so of several
//! processes that would write the next record one does. The last record tells which generation of collections
//! serves, and whether a change of the encoder is under way.
//!
//! A process may answer a write only if it saw, at most [`LEASE`] before, that the record the write went by was the
//! last. So whoever writes a record and then waits [`SETTLE`] knows that from then on every answered write goes by
//! it, whatever has become of the other processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use latentd_model::Contract;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use super::client::{CallError, Client};
use super::record::{Change, Record};
use super::{proto, rows};
use crate::store::StoreError;
use crate::store::refresh::{Agreed, Lead};

/// What the name of a record's collection begins with, the alias of its number, and that of a sign of life.
const RECORD: &str = "latentdm_";
const NUMBER: &str = "latentdr_";
const BEAT: &str = "latentdh_";
/// The form of records that this build reads and writes.
const FORM: u32 = 1;
/// How old what was seen may be when a write is answered.
const LEASE: Duration = Duration::from_secs(3);
/// How old it may be when a write begins.
const FRESH: Duration = Duration::from_millis(1500);
/// After this everybody goes by a new record: the lease, clocks that differ by a tenth, and room to spare.
pub const SETTLE: Duration = Duration::from_millis(3600);
/// How often a process that does nothing looks.
const LOOK: Duration = Duration::from_millis(700);
/// A process that has not looked for so long reads the whole line, since old records are deleted.
const LONG: Duration = Duration::from_secs(600);
/// Records older than this are deleted.
const KEPT: Duration = Duration::from_secs(3600);

struct Seen {
    last: Arc<Record>,
    /// When the last look began that found nothing later.
    at: Instant,
    /// The last record under which writes are allowed, and when the last look began that found it the last.
    free: (Arc<Record>, Instant),
    /// This process' last sign of life as the leader, and its alias.
    beat: (Instant, Option<String>),
    /// The record up to which this process leads nothing any more.
    resigned: u64,
}

/// The line of records, as this process sees it.
pub struct Agreement {
    client: Client,
    me: String,
    my_name: String,
    seen: Mutex<Seen>,
    news: watch::Sender<Agreed>,
    /// Looks one after the other.
    looking: tokio::sync::Mutex<()>,
}

fn alias(number: u64) -> String {
    format!("{NUMBER}{number}")
}

impl Agreement {
    /// Reads the line.
    pub async fn open(client: Client) -> Result<Self, StoreError> {
        use std::hash::{BuildHasher, Hasher};
        let random = || std::hash::RandomState::new().build_hasher().finish();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let now = Instant::now();
        let last = Arc::new(Record::default());
        let seen =
            Seen { last: Arc::clone(&last), at: now, free: (last, now), beat: (now, None), resigned: 0 };
        let agreement = Self {
            me: format!("{:016x}{:016x}", random(), random()),
            my_name: format!("process {} on {}", std::process::id(), host.trim()),
            client,
            seen: Mutex::new(seen),
            news: watch::Sender::new(Agreed::default()),
            looking: tokio::sync::Mutex::new(()),
        };
        agreement.read_line().await?;
        agreement.look().await?;
        agreement.tell(false);
        Ok(agreement)
    }

    /// The last record that was seen.
    pub fn last(&self) -> Arc<Record> {
        Arc::clone(&self.seen.lock().last)
    }

    /// What is told of it to the rest of the server.
    pub fn news(&self) -> watch::Receiver<Agreed> {
        self.news.subscribe()
    }

    async fn read(&self, name: String) -> Result<Option<(Record, proto::Described)>, StoreError> {
        let address = format!("{}/{name}", self.client.address());
        let foreign = |reason: String| StoreError::ForeignCollection { address: address.clone(), reason };
        let described = match self.client.call(proto::DescribeCollection { collection_name: name }).await {
            Ok(described) => described,
            Err(CallError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(self.client.error(error)),
        };
        let text = described.schema.as_ref().map_or("", |schema| &schema.description);
        let form = serde_json::from_str::<serde_json::Value>(text)
            .ok()
            .and_then(|record| record["latentd_agreement"].as_u64())
            .ok_or_else(|| foreign("its description is not one that latentd writes".to_owned()))?;
        if form > u64::from(FORM) {
            return Err(foreign(format!(
                "its form is {form}, but this latentd knows forms up to {FORM}: use a newer latentd"
            )));
        }
        let record = serde_json::from_str(text).map_err(|error| foreign(error.to_string()))?;
        Ok(Some((record, described)))
    }

    /// Finds the last record among all.
    async fn read_line(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        let shown = self.client.ask(proto::ShowCollections {}).await?;
        for name in shown.collection_names.into_iter().filter(|name| name.starts_with(RECORD)) {
            let Some((record, described)) = self.read(name).await? else { continue };
            if described.aliases.contains(&alias(record.number)) {
                self.note(record, began);
            }
        }
        Ok(())
    }

    /// Takes a record that is later than the last one seen.
    fn note(&self, record: Record, began: Instant) {
        let mut seen = self.seen.lock();
        if record.number > seen.last.number {
            seen.last = Arc::new(record);
            seen.at = began;
            if !seen.last.held() {
                seen.free = (Arc::clone(&seen.last), began);
            }
        }
    }

    /// Looks whether there is a later record, and gives the last.
    pub async fn look(&self) -> Result<Arc<Record>, StoreError> {
        let _one = self.looking.lock().await;
        if self.seen.lock().at.elapsed() > LONG {
            self.read_line().await?;
        }
        loop {
            let (began, next) = (Instant::now(), alias(self.last().number + 1));
            // Asked so, nothing is written into Milvus' log, as it is for a collection that cannot be described.
            if !self.client.ask(proto::HasCollection { collection_name: next.clone() }).await?.value {
                let mut seen = self.seen.lock();
                seen.at = began;
                if !seen.last.held() {
                    seen.free = (Arc::clone(&seen.last), began);
                }
                return Ok(Arc::clone(&seen.last));
            }
            match self.read(next).await? {
                Some((record, _)) => self.note(record, began),
                None => self.read_line().await?,
            }
        }
    }

    /// The record that a write may go by.
    pub async fn ticket(&self) -> Result<Arc<Record>, StoreError> {
        let (free, at) = self.seen.lock().free.clone();
        if at.elapsed() < FRESH {
            return Ok(free);
        }
        let last = self.look().await?;
        if last.held() { Err(StoreError::Changing) } else { Ok(last) }
    }

    /// Whether a write that went by this record may be answered.
    pub async fn holds(&self, ticket: &Record) -> Result<bool, StoreError> {
        let fits = |seen: &Seen| seen.free.0.number == ticket.number && seen.free.1.elapsed() < LEASE;
        if fits(&self.seen.lock()) {
            return Ok(true);
        }
        self.look().await?;
        Ok(fits(&self.seen.lock()))
    }

    /// Writes the record after the last one, unless another process was quicker: then gives none.
    pub async fn append(
        &self,
        base: &Record,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Arc<Record>>, StoreError> {
        let mut record = Record { latentd_agreement: FORM, number: base.number + 1, ..base.clone() };
        change(&mut record);
        let began = Instant::now();
        let name = format!("{RECORD}{:x}", self.client.now().await?);
        let description = serde_json::to_string(&record).map_err(|_| StoreError::Internal("a record"))?;
        let schema = proto::CollectionSchema { name: name.clone(), description, fields: rows::schema(2) };
        let made = proto::CreateCollection {
            collection_name: name.clone(),
            schema: schema.encode_to_vec(),
            shards_num: 1,
            consistency_level: proto::consistency::BOUNDED,
        };
        self.client.ask(made).await?;
        let published = proto::CreateAlias { collection_name: name.clone(), alias: alias(record.number) };
        let published = self.client.call(published).await;
        self.seen.lock().beat = (began, None);
        let mut tries = 0;
        let there = loop {
            match self.read(alias(record.number)).await {
                // It must be known who was first.
                Err(StoreError::Unavailable { .. }) if tries < 10 => tries += 1,
                there => break there?,
            }
        };
        let ours =
            there.is_some_and(|(_, described)| described.schema.is_some_and(|schema| schema.name == name));
        if !ours {
            // Nobody finds it; what fails here is deleted with the old ones.
            drop(self.client.call(proto::DropCollection { collection_name: name }).await);
            if let Err(error @ CallError::Unavailable(_)) = published {
                return Err(self.client.error(error));
            }
        }
        self.look().await?;
        self.tell(false);
        Ok(ours.then(|| Arc::new(record)))
    }

    /// Whether this process leads the change of the last record and has said so lately.
    pub fn leads(&self) -> bool {
        let seen = self.seen.lock();
        seen.last.change.as_ref().is_some_and(|change| {
            change.leader == self.me && seen.beat.0.elapsed() < Duration::from_millis(change.lead_ms / 2)
        })
    }

    /// A change that this process is to carry out.
    pub fn change(&self, from: Contract, to: Contract, generation: u64) -> Change {
        let lead_ms = self.client.address().lead.as_millis() as u64;
        let (leader, leader_name) = (self.me.clone(), self.my_name.clone());
        Change { leader, leader_name, lead_ms, from, to, generation, held: false }
    }

    /// Whether this process is put down as the leader of a change.
    pub fn is_mine(&self, change: &Change) -> bool {
        change.leader == self.me
    }

    /// Gives no sign of life for what this process leads now.
    pub fn resign(&self) {
        let mut seen = self.seen.lock();
        seen.resigned = seen.last.number;
    }

    /// Lets another process take over at once.
    pub async fn hand_over(&self) -> Result<(), StoreError> {
        let last = self.last();
        if last.change.as_ref().is_none_or(|change| !self.is_mine(change)) {
            return Ok(());
        }
        self.resign();
        let handed = self.append(&last, |record| {
            if let Some(change) = &mut record.change {
                change.leader.clear();
                change.held = false;
            }
        });
        handed.await.map(drop)
    }

    fn resigned(&self) -> bool {
        let seen = self.seen.lock();
        seen.resigned >= seen.last.number
    }

    /// Says that the leader lives, by an alias with the time in it.
    async fn beat(&self, record: &Record) -> Result<(), StoreError> {
        let began = Instant::now();
        let name = format!("{BEAT}{}_{:x}", record.number, self.client.now().await?);
        let made =
            proto::CreateAlias { collection_name: self.record_name(record).await?, alias: name.clone() };
        self.client.ask(made).await?;
        let before = std::mem::replace(&mut self.seen.lock().beat, (began, Some(name))).1;
        if let Some(alias) = before {
            self.client.ask(proto::DropAlias { alias }).await?;
        }
        Ok(())
    }

    async fn record_name(&self, record: &Record) -> Result<String, StoreError> {
        let there = self.read(alias(record.number)).await?;
        let name = there.and_then(|(_, described)| described.schema).map(|schema| schema.name);
        name.ok_or(StoreError::Internal("a record is gone"))
    }

    /// Whether the leader of the last record's change has given no sign of life for long enough.
    pub async fn abandoned(&self, record: &Record) -> Result<bool, StoreError> {
        let Some(change) = &record.change else { return Ok(false) };
        if change.leader.is_empty() {
            return Ok(true);
        }
        let Some((_, described)) = self.read(alias(record.number)).await? else { return Ok(false) };
        let written = described.schema.iter().map(|schema| &schema.name);
        let signs = written.chain(&described.aliases).filter(|name| !name.starts_with(NUMBER));
        let time = |name: &String| u64::from_str_radix(name.rsplit('_').next()?, 16).ok();
        let latest = signs.filter_map(time).max().unwrap_or(0);
        // The physical part of a timestamp is in milliseconds, above 18 bits of a counter.
        let now = self.client.now().await?;
        Ok((now >> 18).saturating_sub(latest >> 18) > change.lead_ms)
    }

    fn tell(&self, abandoned: bool) {
        let last = self.last();
        let lead = match &last.change {
            None => Lead::Nobody,
            Some(_) if abandoned => Lead::Abandoned,
            // Also while it gives the lead back: it knows best how the change ended.
            Some(change) if change.leader == self.me => Lead::Ours,
            Some(change) => Lead::Other(change.leader_name.clone()),
        };
        let agreed = Agreed { number: last.number, held: last.held(), lead, settings: last.settings.clone() };
        self.news.send_if_modified(|before| {
            let differs = *before != agreed;
            *before = agreed;
            differs
        });
    }

    /// Looks again and again, and says that this process lives while it leads, for as long as it is open.
    pub async fn watch(agreement: std::sync::Weak<Self>) {
        let mut checked = Instant::now();
        let mut abandoned = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(agreement) = agreement.upgrade() else { return };
            let before = agreement.last().number;
            let looked = async {
                let last = agreement.look().await?;
                let Some(change) = &last.change else { return Ok(false) };
                let lead = Duration::from_millis(change.lead_ms);
                if agreement.is_mine(change) && !agreement.resigned() {
                    let at = agreement.seen.lock().beat.0;
                    if at.elapsed() > lead / 5 {
                        agreement.beat(&last).await?;
                    }
                    return Ok(false);
                }
                if checked.elapsed() < lead / 10 {
                    return Ok(abandoned && last.number == before);
                }
                checked = Instant::now();
                agreement.abandoned(&last).await
            };
            match looked.await {
                Ok(is) => {
                    abandoned = is;
                    agreement.tell(abandoned);
                }
                Err(error) => tracing::debug!(%error, "the store's agreement could not be read"),
            }
        }
    }

    /// Deletes old records; the last one stays.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        let last = self.look().await?.number;
        let now = self.client.now().await? >> 18;
        let shown = self.client.ask(proto::ShowCollections {}).await?;
        for name in shown.collection_names {
            let Some(written) = name.strip_prefix(RECORD).and_then(|n| u64::from_str_radix(n, 16).ok())
            else {
                continue;
            };
            if u128::from(now.saturating_sub(written >> 18)) < KEPT.as_millis() {
                continue;
            }
            let Some((record, described)) = self.read(name.clone()).await? else { continue };
            if record.number >= last && !described.aliases.is_empty() {
                continue;
            }
            for alias in described.aliases {
                self.client.ask(proto::DropAlias { alias }).await?;
            }
            self.client.ask(proto::DropCollection { collection_name: name }).await?;
        }
        Ok(())
    }
}
