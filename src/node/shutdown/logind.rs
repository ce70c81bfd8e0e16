//! Asks logind, over the system bus, to wait with a shutdown, and hears of one.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use zbus::zvariant::OwnedFd;

/// Where logind reads its settings.
const SETTINGS: &str = "/etc/systemd/logind.conf.d";
/// kubelet's own file, so that an agent that takes over leaves no second one.
const FILE: &str = "99-kubelet.conf";
/// SIGHUP makes logind read its settings again.
const HANGUP: i32 = 1;
/// That takes it a moment: it is asked so often, with twice the pause each time.
const LOOKS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1",
    gen_blocking = false
)]
trait Logind {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_microseconds(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Systemd {
    fn kill_unit(&self, name: &str, who: &str, signal: i32) -> zbus::Result<()>;
}

/// Why shutdowns are not waited for.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogindError {
    #[error("logind does not answer: {0}; shutdownGracePeriod needs systemd-logind and dbus: install and start both")]
    Bus(#[from] zbus::Error),
    #[error("cannot write {SETTINGS}/{FILE}: {0}")]
    Settings(#[from] io::Error),
    #[error(
        "logind waits {now:?} at most, which is less than the pods' {wanted:?}: set InhibitDelayMaxSec in logind.conf, \
         or shorten shutdownGracePeriod"
    )]
    TooShort { now: Duration, wanted: Duration },
}

/// A connection to logind.
pub(super) struct Logind {
    connection: zbus::Connection,
    proxy: LogindProxy<'static>,
}

/// Held, it makes logind wait, for as long as its settings say.
pub(super) struct Lock {
    _file: OwnedFd,
}

impl Logind {
    /// Connects to the system bus.
    pub(super) async fn connect() -> Result<Self, LogindError> {
        let connection = zbus::Connection::system().await?;
        let proxy = LogindProxy::new(&connection).await?;
        Ok(Self { connection, proxy })
    }

    /// Makes logind wait at least so long.
    pub(super) async fn allow(&self, wanted: Duration) -> Result<(), LogindError> {
        if self.longest().await? >= wanted {
            return Ok(());
        }
        fs::create_dir_all(SETTINGS)?;
        let text = format!("# Pods end before the machine does.\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        fs::write(Path::new(SETTINGS).join(FILE), text)?;
        let systemd = SystemdProxy::new(&self.connection).await?;
        systemd.kill_unit("systemd-logind.service", "all", HANGUP).await?;
        let mut pause = FIRST_PAUSE;
        for _ in 0..LOOKS {
            tokio::time::sleep(pause).await;
            if self.longest().await? >= wanted {
                return Ok(());
            }
            pause *= 2;
        }
        Err(LogindError::TooShort { now: self.longest().await?, wanted })
    }

    async fn longest(&self) -> Result<Duration, LogindError> {
        Ok(Duration::from_micros(self.proxy.inhibit_delay_max_microseconds().await?))
    }

    /// Has logind wait from now on.
    pub(super) async fn lock(&self) -> Result<Lock, LogindError> {
        let why = "Kubelet needs time to handle node shutdown";
        Ok(Lock { _file: self.proxy.inhibit("shutdown", "kubelet", why, "delay").await? })
    }

    /// Whether a shutdown begins; `false`: it is called off.
    pub(super) async fn shutdowns(&self) -> Result<BoxStream<'static, Result<bool, LogindError>>, LogindError> {
        let signals = self.proxy.receive_prepare_for_shutdown().await?;
        Ok(signals.map(|signal| Ok(signal.args()?.start)).boxed())
    }
}
