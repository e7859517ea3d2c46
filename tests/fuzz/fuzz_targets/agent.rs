//! What a guest says through the agent's port: it may be anything, the guest is not ours.
#![no_main]

use cowhand::qemu::agent::parse_answer;
use cowhand::qemu::lines::Lines;
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut lines, mut stream, mut total) = (Lines::default(), bytes, 0);
        let ends = [0xff, b'\n'];
        for end in ends.iter().cycle() {
            let Some(line) = lines.next(&mut stream, *end).await else { break };
            assert_eq!(line.iter().position(|byte| byte == end), Some(line.len() - 1));
            assert_eq!(line, bytes[total..total + line.len()], "bytes were lost or came twice");
            total += line.len();
            let _: Result<Value, _> = parse_answer("guest-info", &line);
        }
    });
});
