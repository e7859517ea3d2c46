//! A testbed in autopkgtest's sense: the server's side of its virtualisation protocol
//! (`README.virtualisation-server` in Debian's package `autopkgtest`), with a clone as the machine
//! and [`reset`](super::reset) as `revert`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::request::{Keep, Request, Warmth};
use super::{discard, reset};
use super::{make, run};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::guest::copy;
use crate::guest::exec::{self, Stream, Streams};
use crate::guest::install::{self, Reached};
use crate::guest::outcome::Failure;
use crate::guest::port::Client;
use crate::helper::frame;
use crate::helper::tree::{Budget, Target};
use crate::instance::status;
use crate::model::{Ephemeral, Name, Network, PointRef};

/// What a line of the protocol asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Capabilities,
    Open,
    Revert,
    /// With true the guest is told to; with false it is about to by itself.
    Reboot(bool),
    Close,
    ExecutePrefix,
    CopyDown(String, String),
    CopyUp(String, String),
    Quit,
}

/// Reads a line. Pure.
pub(crate) fn parse(line: &str) -> Result<Command> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let pair = |from: &str, to: &str| Ok::<_, Error>((decode(from)?, decode(to)?));
    match words[..] {
        ["capabilities"] => Ok(Command::Capabilities),
        ["open"] => Ok(Command::Open),
        ["revert"] => Ok(Command::Revert),
        ["reboot"] => Ok(Command::Reboot(true)),
        ["reboot", "prepare-only"] => Ok(Command::Reboot(false)),
        ["close"] => Ok(Command::Close),
        ["print-execute-command"] => Ok(Command::ExecutePrefix),
        ["copydown", from, to] => pair(from, to).map(|(from, to)| Command::CopyDown(from, to)),
        ["copyup", from, to] => pair(from, to).map(|(from, to)| Command::CopyUp(from, to)),
        ["quit"] => Ok(Command::Quit),
        _ => Err(Error::usage(format!("{line:?} is no command of the virtualisation protocol"))),
    }
}

/// Undoes URL encoding.
pub(crate) fn decode(text: &str) -> Result<String> {
    let bad = || Error::usage(format!("{text:?} is not URL-encoded text"));
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
        let digits = std::str::from_utf8(&digits).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// URL encoding, of everything that could mean something.
pub(crate) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The answer of a command that has worked: `ok` and words, each of them encoded, so that no word
/// of a guest is two, or a line.
pub(crate) fn ok(words: &[String]) -> String {
    words.iter().fold("ok".to_owned(), |line, word| format!("{line} {}", encode(word)))
}

/// The bytes of an answer to a question of ours that are kept; a guest may send more.
const ANSWER: usize = 64 << 10;

/// A directory as a guest names it: absolute, and nothing that a shell or a person could misread.
fn directory(text: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if text.starts_with('/') && text.len() <= 255 && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Error::qemu(format!(
        "what the guest names as its scratch directory is none: {:?}",
        abridged(text)
    )))
}

/// Could this be the name of a user (`useradd(8)`)?
fn is_user(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=32).contains(&text.len()) && !text.starts_with('-') && text.chars().all(plain)
}

fn abridged(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Who runs a command of ours in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Helper,
    Agent,
}

/// Tells one boot from another (`random(4)`).
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// The server.
pub(crate) struct Testbed<'a> {
    context: &'a Context,
    source: PointRef,
    warmth: Warmth,
    limit: Duration,
    budget: Budget,
    /// The VM while the testbed is open, and what its record says of it.
    network: Option<Network>,
    vm: Option<(Name, Ephemeral)>,
    /// The directory of the guest's that the tests may use.
    scratch: String,
}

/// Where that directory is kept while the guest reboots: it may lie in memory.
const SAVED: &str = "/var/cache/cowhand-testbed.tar";
/// How often it is looked whether the guest is back.
const LOOK: Duration = Duration::from_millis(500);

impl<'a> Testbed<'a> {
    /// One on clones of `source`, which have `limit` to come up. Each copy out of them may bring
    /// `budget`.
    pub(crate) fn new(
        context: &'a Context,
        source: PointRef,
        warmth: Warmth,
        limit: Duration,
        budget: Budget,
    ) -> Self {
        Self {
            context,
            source,
            warmth,
            limit,
            budget,
            network: None,
            vm: None,
            scratch: String::new(),
        }
    }

    /// With this network instead of the template's.
    #[must_use]
    pub(crate) fn with_network(mut self, network: Option<Network>) -> Self {
        self.network = network;
        self
    }

    /// Carries out a command and returns its answer, a line. `program` is how commands are run in a
    /// VM.
    pub(crate) async fn answer(
        &mut self,
        command: &Command,
        program: &dyn Fn(&Name) -> Vec<String>,
    ) -> Result<String> {
        if *command == Command::ExecutePrefix {
            // Words in a word: they are encoded one by one.
            let words: Vec<String> =
                program(&self.open()?).iter().map(|word| encode(word)).collect();
            return Ok(format!("ok {}", words.join(",")));
        }
        self.carry_out(command).await.map(|words| ok(&words))
    }

    async fn carry_out(&mut self, command: &Command) -> Result<Vec<String>> {
        match command {
            Command::Capabilities => self.capabilities().await,
            Command::Open => {
                if self.vm.is_some() {
                    return Err(Error::usage("the testbed is open already"));
                }
                let name = run::free_name()?;
                // Noted first: whatever happens now, it goes.
                let request = self.request();
                let ours = super::ours(request.ttl);
                self.vm = Some((name.clone(), ours.clone()));
                let made = make::make(self.context, &request, &name, &ours, self.limit).await?;
                drop(made);
                self.scratch().await.map(|scratch| vec![scratch])
            }
            Command::Revert => {
                reset::reset(self.context, &self.open()?, false).await?;
                self.scratch().await.map(|scratch| vec![scratch])
            }
            Command::Reboot(tell) => self.reboot(*tell).await.map(|()| Vec::new()),
            Command::Close => {
                self.open()?;
                self.close().await.map(|()| Vec::new())
            }
            Command::ExecutePrefix => Ok(Vec::new()),
            Command::CopyDown(from, to) => {
                let mut client = self.client().await?;
                check_slashes(from, to)?;
                copy::put_as(self.context, &mut client, Path::new(from), to.trim_end_matches('/'))
                    .await?;
                Ok(Vec::new())
            }
            Command::CopyUp(from, to) => {
                let mut client = self.client().await?;
                check_slashes(from, to)?;
                let to = PathBuf::from(to.trim_end_matches('/'));
                let target = Target::at(&to).on("write", &to)?;
                // As `cat` and `tar` in the guest would: what is named may be a link, which the
                // guest follows.
                let rules = copy::Rules { follow: true, budget: self.budget };
                copy::get(self.context, &mut client, from, target, &rules).await?;
                Ok(Vec::new())
            }
            Command::Quit => self.close().await.map(|()| Vec::new()),
        }
    }

    /// Removes the VM, if there is one.
    pub(crate) async fn close(&mut self) -> Result<()> {
        match self.vm.take() {
            Some((name, ours)) => discard::discard(self.context, &name, &ours).await.map(drop),
            None => Ok(()),
        }
    }

    fn request(&self) -> Request {
        Request {
            source: self.source.clone(),
            name: None,
            warmth: self.warmth,
            keep: Keep::Never,
            ttl: Duration::from_secs(86_400),
            keep_for: None,
            copy_in: Vec::new(),
            copy_out: Vec::new(),
            copy_rules: copy::Rules::default(),
            copy_limit: self.limit,
            ports: Vec::new(),
            network: self.network.clone(),
            limits: None,
            most: None,
            command: exec::Request::default(),
        }
    }

    fn open(&self) -> Result<Name> {
        self.vm
            .as_ref()
            .map(|(name, _)| name.clone())
            .ok_or_else(|| Error::usage("the testbed is not open"))
    }

    async fn client(&self) -> Result<Client> {
        match install::reach(self.context, &self.open()?, self.limit).await? {
            Reached::Helper(client) => Ok(client),
            Reached::AgentOnly(why) => {
                Err(Error::refused(format!("nothing can be run in the guest: {why}")))
            }
        }
    }

    async fn capabilities(&self) -> Result<Vec<String>> {
        let mut all =
            ["reboot", "revert", "revert-full-system", "root-on-testbed", "isolation-machine"]
                .map(str::to_owned)
                .to_vec();
        if self.vm.is_some() {
            let script = "awk -F: '$3 >= 1000 && $3 < 60000 { print $1; exit }' /etc/passwd";
            let user = self.shell(script, Through::Helper).await?;
            if is_user(&user) {
                all.push(format!("suggested-normal-user={user}"));
            }
        }
        Ok(all)
    }

    /// A directory that the tests may use.
    async fn scratch(&mut self) -> Result<String> {
        let script = "directory=$(mktemp -d /tmp/autopkgtest.XXXXXX) && \
                      chmod 1777 \"$directory\" && echo \"$directory\"";
        self.scratch = directory(&self.shell(script, Through::Helper).await?)?;
        Ok(self.scratch.clone())
    }

    /// Returns when the guest has been booted anew, with its scratch directory as it was. The
    /// answer is empty: `README.virtualisation-server` wants the directory in it, autopkgtest
    /// (5.28) takes that for an error.
    async fn reboot(&self, tell: bool) -> Result<()> {
        let name = self.open()?;
        // The mark is autopkgtest's: a test that is about to reboot waits until it is gone. tar's 1
        // is a file that changed meanwhile.
        let save = format!(
            "umask 77; mkdir -p /var/cache && {{ tar -C / -cf {SAVED} '.{}'; [ $? -le 1 ]; }} && \
             sync && {BOOT_ID} && rm -f /run/autopkgtest-reboot-prepare-mark",
            self.scratch
        );
        let before = self.shell(&save, Through::Helper).await?;
        if tell {
            let reboot =
                "(sleep 1; systemctl reboot || reboot || reboot -f) </dev/null >/dev/null 2>&1 &";
            self.shell(reboot, Through::Helper).await?;
        }
        let deadline = Instant::now() + self.limit;
        // The helper goes with the system it runs in; the agent says when it is back.
        while !self.shell(BOOT_ID, Through::Agent).await.is_ok_and(|now| now != before) {
            if !status::is_running(self.context, &name)? {
                return Err(Error::qemu(format!("{name} has ended instead of rebooting")));
            }
            if Instant::now() > deadline {
                let limit = self.limit.as_secs();
                return Err(Error::qemu(format!(
                    "{name} has not come back from its reboot within {limit} s"
                )));
            }
            sleep(LOOK).await;
        }
        self.shell(&format!("tar -C / -xpf {SAVED} && rm {SAVED}"), Through::Helper).await.map(drop)
    }

    async fn shell(&self, script: &str, through: Through) -> Result<String> {
        let name = self.open()?;
        let mut text = Vec::new();
        let mut output = |stream: Stream, bytes: &[u8]| {
            if stream == Stream::Output {
                text.extend_from_slice(&bytes[..bytes.len().min(ANSWER - text.len())]);
            }
            Ok(())
        };
        let request = exec::Request {
            exec: frame::Exec {
                command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                ..Default::default()
            },
            agent_limit: self.limit,
            limit: Some(self.limit),
            agent_only: through == Through::Agent,
        };
        let streams = Streams { input: None, control: None, output: &mut output };
        match exec::exec(self.context, &name, &request, streams).await {
            Ok(finished) if finished.code == 0 => {
                Ok(String::from_utf8_lossy(&text).trim().to_owned())
            }
            Ok(finished) => {
                Err(Error::failed(format!("`{script}` exits with {} in the guest", finished.code)))
            }
            Err(Failure::Ours(error)) => Err(error),
            Err(_) => Err(Error::failed(format!("`{script}` cannot be run in the guest"))),
        }
    }
}

/// Either both are directories or neither is.
fn check_slashes(from: &str, to: &str) -> Result<()> {
    if from.ends_with('/') == to.ends_with('/') {
        return Ok(());
    }
    Err(Error::usage(format!("{from} and {to}: both have to end in a slash, or neither")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_protocol_are_read_and_paths_decoded() {
        assert_eq!(parse("open").expect("a command"), Command::Open);
        assert_eq!(parse("reboot prepare-only").expect("a command"), Command::Reboot(false));
        let copy = parse("copydown /tmp/a%20b%2Cc/ /x%0a/").expect("a command");
        assert_eq!(copy, Command::CopyDown("/tmp/a b,c/".into(), "/x\n/".into()));
        for bad in [
            "", "opens", "open now", "reboot later", "copydown /a", "copyup /a% /b",
            "copyup /%zz /b", "copyup /%ff /b",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        // What a guest says stays one word.
        let forged = ["/tmp/x\nok forged\tword\u{1b}[2J".to_owned(), String::new()];
        assert_eq!(ok(&forged), "ok /tmp/x%0Aok%20forged%09word%1B%5B2J ");
        assert_eq!(ok(&[]), "ok");
        for bad in ["", "tmp/x", "/tmp/x\nok", "/tmp/'; rm -rf /;'", "/tmp/x y", "/\u{202e}x"] {
            assert!(directory(bad).is_err(), "{bad:?} was taken");
        }
        for bad in ["", "-x", "a b", "a\nok", "a=b", "root\u{7}"] {
            assert!(!is_user(bad), "{bad:?} was taken");
        }
        assert!(is_user("debian") && directory("/tmp/autopkgtest.aB3_x").is_ok());
        assert_eq!(encode("/a b,c%ü"), "/a%20b%2Cc%25%C3%BC");
        assert_eq!(decode(&encode("/a b,c%ü\n")).expect("text"), "/a b,c%ü\n");
    }
}
