//! The listening socket, and connections that cannot be held for ever: few at a time, short headers, time limits.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::net::{AddressFamily, SocketType, bind, ipproto, listen, socket_with, sockopt};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::flags::HttpAddress;

/// Connections at one time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take for the head of a request, also for its next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// A connection is closed after this and two windows, whatever it does: clients connect again.
const CONNECTION_LIFE: Duration = Duration::from_mins(2);

/// Why the page cannot be served.
#[derive(Debug, Error)]
pub enum BindError {
    /// Something else has the port.
    #[error(
        "{0} ({1}) is in use by another program: stop that one, perhaps another bulkhead-uploader, or choose another port"
    )]
    InUse(String, &'static str),
    /// This user may not have the port.
    #[error("this user may not listen on {0} ({1}): choose a port of 1024 or more")]
    NotPermitted(String, &'static str),
    /// Anything else.
    #[error("cannot listen on {address} ({flag}): {source}")]
    Other {
        /// What was asked for.
        address: String,
        /// By which flag.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Begins to listen where this flag says.
pub async fn listen_on(address: &HttpAddress, flag: &'static str) -> Result<TcpListener, BindError> {
    let text = match address {
        HttpAddress::Every(port) => format!(":{port}"),
        HttpAddress::Host(host, port) if host.contains(':') => format!("[{host}]:{port}"),
        HttpAddress::Host(host, port) => format!("{host}:{port}"),
    };
    let listener = match address {
        HttpAddress::Every(port) => bind_every(*port),
        HttpAddress::Host(host, port) => bind_host(host, *port).await,
    };
    listener.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(text, flag),
        io::ErrorKind::PermissionDenied => BindError::NotPermitted(text, flag),
        _ => BindError::Other { address: text, flag, source },
    })
}

/// Every address: one socket for IPv6 and IPv4, or one for IPv4 where there is no IPv6.
fn bind_every(port: u16) -> io::Result<TcpListener> {
    match bind_to(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
            bind_to(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
        }
        result => result,
    }
}

async fn bind_host(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for address in lookup_host((host, port)).await? {
        result = bind_to(address);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // So that connections of a former run, which the kernel still remembers, do not hinder a new one.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    listen(&socket, 128)?;
    TcpListener::from_std(socket.into())
}

/// Serves, for ever.
pub async fn serve(listener: TcpListener, router: Router, window: Duration) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let life = CONNECTION_LIFE + window * 2;
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: it does not help to ask again at once.
                debug!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            // Whatever a client does, its connection ends.
            if timeout(life, connection(stream, router)).await.is_err() {
                debug!("a connection was closed after {} s", life.as_secs());
            }
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        debug!("a connection ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_said_so() {
        let first = listen_on(&HttpAddress::Host("127.0.0.1".into(), 0), "--http-address").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let error =
            listen_on(&HttpAddress::Host("127.0.0.1".into(), port), "--http-address").await.unwrap_err();
        assert!(matches!(error, BindError::InUse(_, _)), "{error}");
        let message = error.to_string();
        assert!(message.contains(&format!("127.0.0.1:{port}")) && !message.contains('\n'), "{message}");
        let error = listen_on(&HttpAddress::Every(port), "--http-address").await.unwrap_err();
        assert!(matches!(error, BindError::InUse(_, _)), "{error}");
    }

    /// More clients than there are places, none of which ever says what it wants.
    #[tokio::test]
    async fn who_does_not_ask_gives_way() {
        let listener = listen_on(&HttpAddress::Host("127.0.0.1".into(), 0), "--http-address").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        tokio::spawn(serve(listener, router, Duration::from_secs(10)));
        let mut slow = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 50 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: x").await.unwrap();
            slow.push(client);
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let begun = std::time::Instant::now();
        let read = timeout(HEAD_TIMEOUT * 4, client.read_to_string(&mut answer)).await;
        assert!(read.is_ok_and(|read| read.is_ok()) && answer.ends_with("here"), "{answer}");
        // There was no place at first, or this shows nothing.
        assert!(begun.elapsed() > HEAD_TIMEOUT / 2, "answered after {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn every_address_includes_ipv4_and_names_are_looked_up() {
        let every = listen_on(&HttpAddress::Every(0), "--http-address").await.unwrap();
        let port = every.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok());
        assert!(listen_on(&HttpAddress::Host("localhost".into(), 0), "--http-address").await.is_ok());
        let error = listen_on(&HttpAddress::Host("192.0.2.1".into(), 0), "--http-address").await.unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
    }
}
