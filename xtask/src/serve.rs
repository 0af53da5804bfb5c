//! `cargo xtask serve`: builds the page and serves it on this computer.
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tiny_http::{Header, Method, Request, Response, Server};

use crate::project::Result;
use crate::wasm;

const PORT: u16 = 8080;
/// As many requests as are answered at once.
const THREADS: usize = 4;

/// The file in which the page's build says what every answer must say (its content security policy above all), in the
/// form that static hosts read.
const HEADERS_FILE: &str = "_headers";

/// `cargo xtask serve`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let port = match args {
        [] => PORT,
        [option, port] if option == "--port" => port
            .parse()
            .map_err(|_| format!("{port:?} is no port number"))?,
        _ => return Err("usage: cargo xtask serve [--port N]".into()),
    };
    let folder = wasm::page()?;
    let server = listen(port)?;
    println!("http://localhost:{}", server.port);
    println!("Ctrl-C ends it.");
    server.answer(&folder)?;
    Ok(ExitCode::SUCCESS)
}

/// A server that has its port but does not answer yet.
struct Listening {
    server: Server,
    port: u16,
}

/// Takes a port of this computer that no other can reach; 0 for any free one.
fn listen(port: u16) -> Result<Listening> {
    let server = Server::http(("127.0.0.1", port))
        .map_err(|error| format!("cannot listen on port {port}: {error}; try --port N"))?;
    let port = server
        .server_addr()
        .to_ip()
        .map_or(port, |address| address.port());
    Ok(Listening { server, port })
}

impl Listening {
    /// Answers with the files of a folder, for ever.
    fn answer(self, folder: &Path) -> Result<()> {
        let headers = std::fs::read_to_string(folder.join(HEADERS_FILE))
            .map_err(|error| format!("{}: {error}", folder.join(HEADERS_FILE).display()))?;
        let site = Site {
            folder: folder.to_path_buf(),
            headers: headers_for_all(&headers),
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Ok(request) = self.server.recv() {
                        let response = site.respond(&request);
                        // A browser that hangs up is no concern of ours.
                        let _ = request.respond(response);
                    }
                });
            }
        });
        Ok(())
    }
}

/// A folder of files and what to say with each.
struct Site {
    folder: PathBuf,
    headers: Vec<Header>,
}

impl Site {
    fn respond(&self, request: &Request) -> Response<Cursor<Vec<u8>>> {
        if !matches!(request.method(), Method::Get | Method::Head) {
            return Response::from_string("only GET and HEAD\n").with_status_code(405);
        }
        let not_found = || Response::from_string("no such file\n").with_status_code(404);
        let Some(mut path) = file_for(&self.folder, request.url()) else {
            return not_found();
        };
        if path.is_dir() {
            path.push("index.html");
        }
        let Ok(content) = std::fs::read(&path) else {
            return not_found();
        };
        let mut response = Response::from_data(content);
        let own = [
            ("Content-Type", mime_type(&path)),
            ("Cache-Control", "no-store"),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, value)| header(name, value));
        for header in own.chain(self.headers.iter().cloned()) {
            response.add_header(header);
        }
        response
    }
}

/// What the section `/*` of a `_headers` file says.
fn headers_for_all(text: &str) -> Vec<Header> {
    let section = text.lines().skip_while(|line| *line != "/*").skip(1);
    let fields = section.take_while(|line| line.starts_with([' ', '\t']));
    fields
        .filter_map(|line| line.trim().split_once(": "))
        .filter_map(|(name, value)| header(name, value))
        .collect()
}

fn header(name: &str, value: &str) -> Option<Header> {
    Header::from_bytes(name, value).ok()
}

/// The file that a URL means: `None` for names that leave the folder.
fn file_for(folder: &Path, url: &str) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next()?.strip_prefix('/')?;
    let mut file = folder.to_path_buf();
    for part in path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        // The page's own files have plain names, so nothing that needs decoding can be one of them.
        if part == ".." || part.contains(['%', '\\', ':']) {
            return None;
        }
        file.push(part);
    }
    Some(file)
}

fn mime_type(file: &Path) -> &'static str {
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn a_url_never_leaves_the_folder() {
        let folder = Path::new("dist");
        let file = |url| file_for(folder, url);
        assert_eq!(file("/"), Some("dist".into()));
        assert_eq!(file("/assets//a.js?v=1#x"), Some("dist/assets/a.js".into()));
        assert_eq!(file("/../Cargo.toml"), None);
        assert_eq!(file("/a/%2e%2e/b"), None);
        assert_eq!(file("/a/..\\b"), None);
        assert_eq!(file("http://elsewhere/"), None);
    }

    #[test]
    fn a_browser_gets_files_with_their_type_and_the_policy() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("oxcow-serve-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("index.html"), "<p>hello")?;
        std::fs::write(folder.join("x.wasm"), b"\0asm")?;
        std::fs::write(
            folder.join("_headers"),
            "/*\n  Content-Security-Policy: default-src 'none'\n\n/x\n  Y: z\n",
        )?;

        let server = listen(0)?;
        let port = server.port;
        let served = folder.clone();
        std::thread::spawn(move || server.answer(&served).is_ok());
        let ask = |request: &str| -> Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            write!(
                stream,
                "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };

        let page = ask("GET /?from=here")?;
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(page.ends_with("<p>hello"), "{page}");
        assert!(
            page.contains("Content-Type: text/html; charset=utf-8"),
            "{page}"
        );
        assert!(
            page.contains("Content-Security-Policy: default-src 'none'"),
            "{page}"
        );
        assert!(page.contains("Cache-Control: no-store"), "{page}");
        assert!(!page.contains("Y: z"), "{page}");
        assert!(ask("GET /x.wasm")?.contains("Content-Type: application/wasm"));
        assert!(!ask("HEAD /")?.contains("hello"));
        assert!(ask("GET /y")?.starts_with("HTTP/1.1 404"));
        assert!(ask("POST /")?.starts_with("HTTP/1.1 405"));
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }
}
