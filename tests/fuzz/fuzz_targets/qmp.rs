//! What a QEMU says: greeting, replies, events, in any order, or anything else.
#![no_main]

use std::io::Write;
use std::time::Duration;

use cowhand::qemu::qmp::Qmp;
use cowhand::qemu::qmp::jobs::Job;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("a socket that does not wait");
        let _ = theirs.write(bytes);
        theirs.shutdown(std::net::Shutdown::Write).expect("an end");
        ours.set_nonblocking(true).expect("a socket that does not wait");
        let ours = tokio::net::UnixStream::from_std(ours).expect("a socket");
        let Ok(mut qmp) = Qmp::handshake(ours, Duration::from_secs(5)).await else { return };
        let _ = qmp.status(Duration::from_secs(5)).await;
        let _: Result<Vec<Job>, _> = qmp.jobs().await;
        let _ = qmp.migration().await;
        let _ = qmp.active_layer("vda").await;
        let soon = tokio::time::Instant::now() + Duration::from_secs(5);
        while let Ok(Some(_)) = qmp.event(soon).await {}
    });
});
