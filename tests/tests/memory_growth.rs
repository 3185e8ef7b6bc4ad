//! A long run takes no more memory than a short one.

use std::sync::{Arc, Mutex};

use collimate::flow::{FlowConfig, FlowMode, RunSink, TrainedUpdate};
use collimate_protocol::RoleError;
use collimate_tests::counting::Counting;
use collimate_tests::tiny::{BATCH_SIZE, Models};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Bytes in use after each update.
#[derive(Clone, Default)]
struct InUse(Arc<Mutex<Vec<u64>>>);

impl RunSink for InUse {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        self.0.lock().unwrap().push(ALLOCATOR.in_use());
        Ok(())
    }
}

#[tokio::test]
async fn a_thousand_more_updates_take_no_more_memory() {
    const N_UPDATES: usize = 2000;
    let [models, _] = Models::each();
    let in_use = InUse::default();
    // What is counted is room for the counts too.
    in_use.0.lock().unwrap().reserve(N_UPDATES);
    let config = FlowConfig {
        n_updates: N_UPDATES as u64,
        batch_size: BATCH_SIZE,
        mode: FlowMode::Deterministic,
        ..FlowConfig::default()
    };
    models.flow(1, Box::new(in_use.clone())).start(&config).await.unwrap().wait().await.unwrap();
    let in_use = in_use.0.lock().unwrap();
    assert_eq!(in_use.len(), N_UPDATES);
    let most = |updates: &[u64]| *updates.iter().max().unwrap();
    let (early, late) = (most(&in_use[900..1000]), most(&in_use[1900..]));
    println!("the most in use, by hundreds of updates: {:?}", in_use.chunks(100).map(most).collect::<Vec<_>>());
    // A byte for each token sampled meanwhile would be more.
    assert!(late <= early + 32 * 1024, "{early} bytes in use before a thousand updates, {late} after them");
}
