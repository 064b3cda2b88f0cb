//! What a supervisor that started this process is told (`sd_notify(3)`): that it is ready, that it is alive, that it ends.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    time::Duration,
};

/// The supervisor's socket, connected while sockets can still be made.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that the environment names (`NOTIFY_SOCKET`, and `WATCHDOG_USEC` and `WATCHDOG_PID` of `sd_watchdog_enabled(3)`), if
    /// it names one.
    pub fn of_environment() -> io::Result<Self> {
        let socket = env::var_os("NOTIFY_SOCKET").map(|name| connect(name.as_bytes())).transpose()?;
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_meant);
        Ok(Supervisor { watchdog: watchdog.map(Duration::from_micros).filter(|_| socket.is_some()), socket })
    }

    /// How often it wants to hear [`Supervisor::alive`]: twice in the time after which it gives up.
    #[must_use]
    pub fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The start is over.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// Nothing hangs.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.say("WATCHDOG=1");
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// A supervisor that does not listen is no reason to stop, nor to wait.
    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // An @ stands for the zero that an abstract name begins with.
    let connected = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name).and_then(|address| socket.connect_addr(&address)),
        None => socket.connect(Path::new(std::ffi::OsStr::from_bytes(name))),
    };
    connected.map_err(|error| {
        let name = String::from_utf8_lossy(name).into_owned();
        io::Error::new(
            error.kind(),
            format!("cannot connect to the supervisor at {name:?} ($NOTIFY_SOCKET): {error}"),
        )
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_are_reached() {
        let path = env::temp_dir().join(format!("bulkhead-notify-{}", std::process::id()));
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("bulkhead-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (listener, name) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
            let supervisor = Supervisor {
                socket: Some(connect(name.as_bytes()).unwrap()),
                watchdog: Some(Duration::from_secs(1)),
            };
            supervisor.ready();
            supervisor.alive();
            supervisor.stopping();
            for expected in ["READY=1", "WATCHDOG=1", "STOPPING=1"] {
                let mut text = [0; 64];
                let length = listener.recv(&mut text).unwrap();
                assert_eq!(&text[..length], expected.as_bytes());
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(
            connect(path.display().to_string().as_bytes()).unwrap_err().to_string().contains("NOTIFY_SOCKET")
        );
    }

    #[test]
    fn without_one_nothing_is_said() {
        let supervisor = Supervisor { socket: None, watchdog: None };
        supervisor.ready();
        assert_eq!(supervisor.alive_every(), None);
        let limit = Duration::from_secs(30);
        let supervisor = Supervisor { socket: None, watchdog: Some(limit) };
        assert_eq!(supervisor.alive_every(), Some(limit / 2));
    }
}
