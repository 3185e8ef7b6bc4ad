//! The way from a browser to a server, which can be cut and mended.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A server's second address.
pub struct Cable {
    ends: Arc<Mutex<Ends>>,
    address: SocketAddr,
}

#[derive(Default)]
struct Ends {
    is_cut: bool,
    /// Both ends of every connection that was made since it was cut last.
    open: Vec<TcpStream>,
}

impl Cable {
    /// To the server at `base`: `http://ADDRESS:PORT`.
    pub fn to(base: &str) -> Self {
        let server = base.strip_prefix("http://").expect("the address of a server").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, ends) = (listener.local_addr().expect("it listens"), Arc::<Mutex<Ends>>::default());
        let joined = ends.clone();
        std::thread::spawn(move || {
            for browser in listener.incoming().map_while(Result::ok) {
                join(browser, &server, &joined);
            }
        });
        Self { ends, address }
    }

    /// `http://ADDRESS:PORT`.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks every connection, and closes each new one at once.
    pub fn cut(&self) {
        let mut ends = self.ends.lock().expect("nothing panics with it");
        ends.is_cut = true;
        for end in ends.open.drain(..) {
            // It may be closed already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.ends.lock().expect("nothing panics with it").is_cut = false;
    }
}

fn join(browser: TcpStream, server: &str, ends: &Mutex<Ends>) {
    let mut ends = ends.lock().expect("nothing panics with it");
    if ends.is_cut {
        return;
    }
    let server = TcpStream::connect(server).expect("the server listens");
    for (from, to) in [(&browser, &server), (&server, &browser)] {
        let [mut from, mut to] = [from, to].map(|end| end.try_clone().expect("a handle"));
        std::thread::spawn(move || {
            // It ends with the connection, however that ends.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    ends.open.extend([browser, server]);
}
