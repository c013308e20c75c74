//! A client with a stolen token that sees which workers are members, and pretends to be each of them.

use tally_proto::PROTOCOL;
use tally_proto::v1::{
    Chunk, Committed, ContributionBegin, ContributionEnd, CoordinatorMessage, Failed, GradientUp, Hello,
    Leave, MessageContext, StatusRequest, StreamOpen, WorkerMessage, coordinator_message, gradient_up,
    worker_message,
};
use tally_transport::connect::{Client, connect};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use tally_tools::load::Target;

/// Pretends from within this process.
#[derive(Debug)]
pub struct Impostor {
    target: Target,
    runtime: Runtime,
}

impl Impostor {
    /// One who has the token that `target` names.
    ///
    /// # Panics
    /// If there is no runtime for it.
    #[must_use]
    pub fn new(target: Target) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { target, runtime }
    }

    /// Tries everything once with the sessions of all workers that are there, and returns how many they were.
    ///
    /// # Panics
    /// If a session of another is believed, or its own outlives a message in another's name.
    #[must_use]
    pub fn pretend(&self) -> usize {
        self.runtime.block_on(async {
            let mut client = self.client().await;
            let status = client.status(StatusRequest {}).await.unwrap().into_inner();
            let run = u64::from_str_radix(&status.run, 16).unwrap();
            let step = status.step + 1;
            let context =
                |session| MessageContext { run, incarnation: status.incarnation, session, step, attempt: 1 };
            for worker in &status.workers {
                let victim = context(worker.session);
                self.take_its_stream(victim).await;
                self.speak_for_it(victim).await;
                self.contribute_for_it(victim).await;
            }
            status.workers.len()
        })
    }

    async fn client(&self) -> Client {
        let connection = connect(&self.target.address().to_string(), &self.target.access).await.unwrap();
        Client::new(connection)
    }

    /// Opens the gradient stream of a session that has its own.
    async fn take_its_stream(&self, victim: MessageContext) {
        let open = gradient(victim, gradient_up::Body::StreamOpen(StreamOpen::default()));
        let answer = self.client().await.gradients(tokio_stream::once(open)).await;
        let code = answer.err().map(|status| status.code());
        assert_eq!(code, Some(Code::NotFound), "the stream of another's session was opened again");
    }

    /// Says in its own session what only the other may say in that one.
    async fn speak_for_it(&self, victim: MessageContext) {
        use worker_message::Body;
        for body in [
            Body::Leave(Leave {}),
            Body::Failed(Failed { what: "not at all".into() }),
            Body::Committed(Committed { digest: 1, ..Committed::default() }),
        ] {
            let (control, mut heard, _) = self.join().await;
            let _ = control.send(WorkerMessage { context: Some(victim), body: Some(body) });
            over(&mut heard).await;
        }
    }

    /// Contributes in the other's name, and in its own what it was not asked for.
    async fn contribute_for_it(&self, victim: MessageContext) {
        for forged in [true, false] {
            let (_control, mut heard, (mut client, own)) = self.join().await;
            let context = if forged {
                victim
            } else {
                MessageContext { step: victim.step, attempt: victim.attempt, ..own }
            };
            let (up, stream) = mpsc::unbounded_channel();
            let node = 2;
            let _ = up.send(gradient(own, gradient_up::Body::StreamOpen(StreamOpen::default())));
            for body in [
                gradient_up::Body::ContributionBegin(ContributionBegin { node, digest: 1, samples: 2 }),
                gradient_up::Body::Chunk(Chunk { node, index: 0, data: vec![0; 4096].into(), slot: None }),
                gradient_up::Body::ContributionEnd(ContributionEnd { node, ..ContributionEnd::default() }),
            ] {
                let _ = up.send(gradient(context, body));
            }
            let _down = client.gradients(UnboundedReceiverStream::new(stream)).await;
            if forged {
                over(&mut heard).await;
            }
        }
    }

    /// Comes in as a worker of its own, as far as the token goes.
    async fn join(
        &self,
    ) -> (mpsc::UnboundedSender<WorkerMessage>, Streaming<CoordinatorMessage>, (Client, MessageContext)) {
        let mut client = self.client().await;
        let (control, stream) = mpsc::unbounded_channel();
        let hello = Hello { protocol: PROTOCOL, name: "impostor".into(), ..Hello::default() };
        let _ = control.send(WorkerMessage { context: None, body: Some(worker_message::Body::Hello(hello)) });
        let mut heard = client.control(UnboundedReceiverStream::new(stream)).await.unwrap().into_inner();
        let welcome = heard.message().await.unwrap().unwrap();
        assert!(matches!(welcome.body, Some(coordinator_message::Body::Welcome(_))), "{welcome:?}");
        (control, heard, (client, welcome.context.unwrap()))
    }
}

fn gradient(context: MessageContext, body: gradient_up::Body) -> GradientUp {
    GradientUp { context: Some(context), body: Some(body) }
}

/// Waits until the coordinator has ended the session, with or without a word.
async fn over(heard: &mut Streaming<CoordinatorMessage>) {
    while let Ok(Some(_)) = heard.message().await {}
}
