//! The write queue: through which all writes of a store go to the one worker behind it, bounded in number and bytes.
//!
//! While the worker carries a group of writes out, further ones queue; the next group takes them all. So a lone write
//! waits for nobody, and under load what a group costs is shared.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{CollectionName, InvalidValue, ItemId, MAX_BULK, NewItem, StoreError, Upserted};

/// Where the answer to a write goes.
pub type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What an upsert tells of each item.
pub type UpsertResults = Vec<Result<Upserted, StoreError>>;

/// Most items of one group, beyond which no further write is added.
const MAX_ITEMS: usize = 4096;

/// A write that was asked for.
pub enum Write {
    Upsert { collection: CollectionName, items: Vec<NewItem>, reply: Reply<UpsertResults> },
    Delete { collection: CollectionName, ids: Vec<ItemId>, reply: Reply<Vec<bool>> },
    Drop { collection: CollectionName, reply: Reply<bool> },
}

impl Write {
    fn items(&self) -> usize {
        match self {
            Self::Upsert { items, .. } => items.len(),
            Self::Delete { ids, .. } => ids.len(),
            Self::Drop { .. } => 1,
        }
    }
}

/// What waits in the queue: a write, or what an engine does alone, after the writes before it.
enum Work<A> {
    Write(Write),
    Alone(A),
}

/// What waits, with its share of the queue's bytes.
struct Job<A> {
    work: Work<A>,
    permit: Option<OwnedSemaphorePermit>,
}

/// What a queue takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Writes that may wait.
    pub writes: usize,
    /// KiB of items that may wait.
    pub kib: usize,
    /// How long a write waits for its place.
    pub wait: Duration,
}

/// The end of the queue that writes come in by.
pub struct Queue<A> {
    sender: Mutex<Option<mpsc::Sender<Job<A>>>>,
    kib: Arc<Semaphore>,
    limits: Limits,
}

/// The end of the queue that the worker takes groups from.
pub struct Groups<A>(mpsc::Receiver<Job<A>>);

/// Writes that are carried out together, then perhaps something alone.
pub struct Group<A> {
    /// The writes, in the order in which they came.
    pub writes: Vec<Write>,
    /// What is done after them.
    pub alone: Option<A>,
    /// Their shares of the queue's bytes, given back when they are dropped.
    pub permits: Vec<OwnedSemaphorePermit>,
}

impl<A> Queue<A> {
    /// Both ends of an empty queue.
    pub fn new(limits: Limits) -> (Self, Groups<A>) {
        let (sender, receiver) = mpsc::channel(limits.writes.max(1));
        let kib = Arc::new(Semaphore::new(limits.kib.max(1)));
        (Self { sender: Mutex::new(Some(sender)), kib, limits }, Groups(receiver))
    }

    fn sender(&self) -> Result<mpsc::Sender<Job<A>>, StoreError> {
        self.sender.lock().clone().ok_or(StoreError::Closed)
    }

    /// Fails once the queue was closed.
    pub fn is_open(&self) -> Result<(), StoreError> {
        self.sender().map(drop)
    }

    /// Fails once the queue was closed, or its worker ended.
    pub fn has_worker(&self) -> Result<(), StoreError> {
        if self.sender()?.is_closed() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// How many writes wait.
    pub fn waiting(&self) -> Result<usize, StoreError> {
        let sender = self.sender()?;
        Ok(sender.max_capacity() - sender.capacity())
    }

    async fn queue<T>(&self, bytes: usize, work: impl FnOnce(Reply<T>) -> Work<A>) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.sender()?;
        let kib = (bytes / 1024 + 1).min(self.limits.kib).min(u32::MAX as usize) as u32;
        let queue = async {
            let permit = Arc::clone(&self.kib).acquire_many_owned(kib).await.ok();
            sender.send(Job { work: work(reply), permit }).await.map_err(|_| StoreError::Closed)
        };
        match tokio::time::timeout(self.limits.wait, queue).await {
            Ok(queued) => queued?,
            Err(_) => return Err(StoreError::Busy { what: "writes" }),
        }
        drop(sender);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues an upsert and waits for its answer; `size` tells the bytes of an item.
    pub async fn upsert(
        &self,
        collection: CollectionName,
        items: Vec<NewItem>,
        size: impl Fn(&NewItem) -> usize,
    ) -> Result<UpsertResults, StoreError> {
        if items.len() > MAX_BULK {
            return Err(InvalidValue::Bulk(items.len()).into());
        }
        let bytes = items.iter().map(size).sum();
        self.queue(bytes, |reply| Work::Write(Write::Upsert { collection, items, reply })).await
    }

    /// Queues a deletion and waits for its answer.
    pub async fn delete(
        &self,
        collection: CollectionName,
        ids: Vec<ItemId>,
    ) -> Result<Vec<bool>, StoreError> {
        if ids.len() > MAX_BULK {
            return Err(InvalidValue::Bulk(ids.len()).into());
        }
        let bytes = ids.iter().map(|id| id.as_str().len() + 64).sum();
        self.queue(bytes, |reply| Work::Write(Write::Delete { collection, ids, reply })).await
    }

    /// Queues the deletion of a collection and waits for its answer.
    pub async fn drop_collection(&self, collection: CollectionName) -> Result<bool, StoreError> {
        self.queue(0, |reply| Work::Write(Write::Drop { collection, reply })).await
    }

    /// Queues what is done alone, after all that waits, and waits for its answer.
    pub async fn alone<T>(&self, bytes: usize, work: impl FnOnce(Reply<T>) -> A) -> Result<T, StoreError> {
        self.queue(bytes, |reply| Work::Alone(work(reply))).await
    }

    /// Takes no more; `last` is done after all that waits. Does nothing when it was closed before.
    pub async fn close(&self, last: impl FnOnce(Reply<()>) -> A) -> Result<(), StoreError> {
        let Some(sender) = self.sender.lock().take() else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let job = Job { work: Work::Alone(last(reply)), permit: None };
        sender.send(job).await.map_err(|_| StoreError::Closed)?;
        drop(sender);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Takes no more; the worker ends once it has done what waits.
    pub fn end(&self) {
        self.sender.lock().take();
    }
}

impl<A> Groups<A> {
    /// The next writes, as soon as there are any; none once the queue is closed and empty.
    pub async fn next(&mut self) -> Option<Group<A>> {
        let first = self.0.recv().await?;
        Some(self.group(first))
    }

    /// As [`Self::next`], on a thread that may wait.
    pub fn blocking_next(&mut self) -> Option<Group<A>> {
        let first = self.0.blocking_recv()?;
        Some(self.group(first))
    }

    /// `first` and what has queued behind it.
    fn group(&mut self, first: Job<A>) -> Group<A> {
        let mut group = Group { writes: Vec::new(), alone: None, permits: Vec::new() };
        let (mut items, mut next) = (0, Some(first));
        while let Some(Job { work, permit }) = next {
            group.permits.extend(permit);
            match work {
                Work::Write(write) => {
                    items += write.items();
                    group.writes.push(write);
                }
                Work::Alone(alone) => {
                    group.alone = Some(alone);
                    break;
                }
            }
            next = if items < MAX_ITEMS { self.0.try_recv().ok() } else { None };
        }
        group
    }

    /// Refuses what comes from now on, and lets go of what waits.
    pub fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn queue(writes: usize, kib: usize) -> (Arc<Queue<Reply<()>>>, Groups<Reply<()>>) {
        let (queue, groups) = Queue::new(Limits { writes, kib, wait: Duration::from_millis(50) });
        (Arc::new(queue), groups)
    }

    fn ids(count: usize) -> Vec<ItemId> {
        (0..count).map(|n| ItemId::new(&n.to_string()).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_queued_goes_together_and_nothing_passes_what_is_alone() {
        let (queue, mut groups) = queue(16, 1 << 20);
        let ask = |count| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.delete(CollectionName::default(), ids(count)).await })
        };
        let mut asked = Vec::new();
        for count in [1, 2, MAX_ITEMS, 3] {
            asked.push(ask(count));
            tokio::task::yield_now().await;
        }
        let alone = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.alone(0, |reply| reply).await }
        });
        tokio::task::yield_now().await;
        asked.push(ask(4));
        tokio::task::yield_now().await;
        assert_eq!(queue.waiting().unwrap(), 6);
        for (expected, alone) in [(vec![1, 2, MAX_ITEMS], false), (vec![3], true), (vec![4], false)] {
            let group = groups.next().await.unwrap();
            let counts: Vec<usize> = group.writes.iter().map(Write::items).collect();
            assert_eq!((counts, group.alone.is_some()), (expected, alone));
            for write in group.writes {
                let Write::Delete { ids, reply, .. } = write else { panic!("no deletion was lost") };
                reply.send(Ok(vec![true; ids.len()])).unwrap();
            }
            if let Some(reply) = group.alone {
                reply.send(Ok(())).unwrap();
            }
        }
        for asked in asked {
            assert!(asked.await.unwrap().unwrap().into_iter().all(|there| there));
        }
        alone.await.unwrap().unwrap();
        queue.end();
        assert!(groups.next().await.is_none());
        assert_eq!(queue.delete(CollectionName::default(), ids(1)).await.unwrap_err().code(), "store_closed");
    }

    #[tokio::test]
    async fn a_full_queue_refuses_in_time() {
        // One deletion of this many ids takes the whole share of bytes, though it is larger.
        let (queue, mut groups) = queue(16, 4);
        let first = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.delete(CollectionName::default(), ids(500)).await }
        });
        tokio::task::yield_now().await;
        let refused = queue.delete(CollectionName::default(), ids(1)).await.unwrap_err();
        assert_eq!(refused.code(), "store_busy");
        assert_eq!(
            queue.delete(CollectionName::default(), ids(MAX_BULK + 1)).await.unwrap_err().code(),
            "too_many_items"
        );
        let group = groups.next().await.unwrap();
        groups.close();
        drop(group);
        assert_eq!(first.await.unwrap().unwrap_err().code(), "store_closed");
        assert_eq!(queue.has_worker().unwrap_err().code(), "store_closed");
    }
}
