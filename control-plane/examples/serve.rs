#[path = "../tests/server/mod.rs"]
mod server;
fn main() {
    let s = server::Server::start();
    println!("{}", s.kubeconfig.display());
    std::thread::sleep(std::time::Duration::from_secs(3000));
}
