//! Bounds the memory of all bodies at a time.
//!
//! A Check of a tool call carries its body, 2 MiB at most, and there may be as many Checks as
//! streams. So bytes beyond what any Check may have are taken from a budget as they arrive, and
//! given back when the Check is answered; without budget the call fails at once (503), and tunnels,
//! whose Checks are small, are not touched.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::codegen::{BoxFuture, Service, StdError};
use tonic::server::NamedService;

/// What every Check may have, in bytes.
const FREE: usize = 64 * 1024;

/// Bytes that bodies may take.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    /// At most `bytes` at a time.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }
}

/// A service whose requests' bodies are counted.
#[derive(Debug, Clone)]
pub(crate) struct Bodies<S> {
    service: S,
    budget: Budget,
}

impl<S> Bodies<S> {
    pub(crate) fn counted(service: S, budget: Budget) -> Self {
        Self { service, budget }
    }
}

impl<S: NamedService> NamedService for Bodies<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Bodies<S>
where
    S: Service<Request<Counted<B>>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let held = Arc::new(Held {
            budget: self.budget.clone(),
            taken: Mutex::default(),
        });
        let request = request.map(|body| Counted {
            body,
            held: Arc::clone(&held),
        });
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            // The body went into the message, which is gone only now.
            drop(held);
            answer
        })
    }
}

/// What one body has taken.
#[derive(Debug)]
struct Held {
    budget: Budget,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    seen: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes room for so many more bytes, if there is any.
    fn take(&self, more: usize) -> Result<(), Status> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = FREE.saturating_sub(taken.seen);
        taken.seen = taken.seen.saturating_add(more);
        let paid = u32::try_from(more.saturating_sub(free)).unwrap_or(u32::MAX);
        if paid == 0 {
            return Ok(());
        }
        let permit = Arc::clone(&self.budget.0).try_acquire_many_owned(paid);
        let permit =
            permit.map_err(|_| Status::resource_exhausted("too many large bodies at a time"))?;
        match &mut taken.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }
}

/// A body that takes its room as it arrives.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    held: Arc<Held>,
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes, Error: Into<StdError>> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            other => return other.map_err(Into::into),
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        Poll::Ready(Some(
            self.held.take(bytes).map(|()| frame).map_err(Into::into),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};

    use super::*;

    /// Reads the whole body, and answers when told to.
    #[derive(Clone)]
    struct Reader(tokio::sync::watch::Receiver<bool>);

    impl Service<Request<Counted<Full<Bytes>>>> for Reader {
        type Response = Result<usize, String>;
        type Error = Infallible;
        type Future = BoxFuture<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Counted<Full<Bytes>>>) -> Self::Future {
            let mut answer = self.0.clone();
            Box::pin(async move {
                let read = request.into_body().collect().await;
                let _ = answer.wait_for(|now| *now).await;
                Ok(read
                    .map(|read| read.to_bytes().len())
                    .map_err(|error| error.to_string()))
            })
        }
    }

    #[tokio::test]
    async fn large_bodies_have_room_only_while_others_leave_it() {
        let (answer, waiting) = tokio::sync::watch::channel(false);
        let budget = Budget::new(3 * FREE);
        let call = |bytes: usize| {
            let body = Full::new(Bytes::from(vec![0; bytes]));
            let mut service = Bodies::counted(Reader(waiting.clone()), budget.clone());
            tokio::spawn(service.call(Request::new(body)))
        };
        let first = call(3 * FREE);
        while budget.0.available_permits() > FREE {
            tokio::task::yield_now().await;
        }
        // One byte more than is left; small ones take nothing.
        let (too_large, small) = (call(2 * FREE + 1), call(FREE));
        // Nobody's room is given back before the answer.
        tokio::task::yield_now().await;
        assert_eq!(budget.0.available_permits(), FREE);
        answer.send(true).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), Ok(3 * FREE));
        assert!(too_large.await.unwrap().unwrap().is_err());
        assert_eq!(small.await.unwrap().unwrap(), Ok(FREE));
        assert_eq!(budget.0.available_permits(), 3 * FREE);
        assert_eq!(call(4 * FREE).await.unwrap().unwrap(), Ok(4 * FREE));
    }
}
