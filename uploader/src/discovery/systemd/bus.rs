//! systemd's manager on the system bus: the one method of it that is called.

use std::{io, time::Duration};

use thiserror::Error;
use tokio::time::timeout;
use zbus::{Connection, connection::Builder, wire::OwnedObjectPath};

/// How long an answer may take: connecting, or one call.
const PATIENCE: Duration = Duration::from_secs(5);
/// A unit that systemd found no file of, and that does not run.
const NOT_FOUND: &str = "not-found";

/// Why systemd has not answered.
#[derive(Debug, Error)]
pub(super) enum BusError {
    /// The system bus, or systemd behind it.
    #[error("cannot ask systemd over the system bus: {0}")]
    Bus(#[from] zbus::Error),
    /// Nothing came.
    #[error("systemd has not answered over the system bus within {} seconds", PATIENCE.as_secs())]
    Silent,
}

impl BusError {
    /// Whether it says that there is no systemd here, or no bus, rather than that something is wrong with it.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            BusError::Bus(zbus::Error::InputOutput(error)) => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            BusError::Bus(zbus::Error::FDO(error)) => {
                matches!(**error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_))
            }
            BusError::Bus(_) | BusError::Silent => false,
        }
    }
}

/// A unit, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unit {
    /// The name that systemd itself uses (`Id`).
    pub id: String,
    /// What it is, for people.
    pub description: String,
}

/// An element of what `ListUnitsByNames` answers (org.freedesktop.systemd1(5)): id, description, load state, active state, sub-state,
/// the unit that it follows, object path; job: number, kind, object path.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// The connection.
#[derive(Debug)]
pub(super) struct Bus(Connection);

impl Bus {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS`, or where it always is).
    pub(super) async fn connect() -> Result<Self, BusError> {
        Ok(Bus(answer(Builder::system().build()).await?))
    }

    /// The units that these names stand for, without those that there are not.
    pub(super) async fn units(&self, names: &[&str]) -> Result<Vec<Unit>, BusError> {
        const MANAGER: &str = "org.freedesktop.systemd1.Manager";
        let (service, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        let body = (names,);
        let call = self.0.call_method(Some(service), path, Some(MANAGER), "ListUnitsByNames", &body);
        let listed: Vec<Listed> = answer(call).await?.body().deserialize()?;
        let there = listed.into_iter().filter(|(.., load, _, _, _, _, _, _, _)| load != NOT_FOUND);
        Ok(there.map(|(id, description, ..)| Unit { id, description }).collect())
    }
}

/// What comes in time.
async fn answer<T>(future: impl Future<Output = zbus::Result<T>>) -> Result<T, BusError> {
    Ok(timeout(PATIENCE, future).await.map_err(|_| BusError::Silent)??)
}
