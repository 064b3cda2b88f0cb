//! Serves the profiles of the page's tests, for a look with one's own browser, until it is stopped:
//! `cargo run -p tests --example page [ADDRESS]`.

#[path = "../tests/page/fixture.rs"]
mod fixture;

use fixture::{HOSTILE, large, serve, small};

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7099".into());
    let targets = vec![("bash", small()), ("late", small()), ("large", large()), (HOSTILE, small())];
    println!("{}", serve(&address, targets).await);
    std::future::pending::<()>().await;
}
