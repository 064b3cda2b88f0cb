//! The programs that are run, and how: shell scripts that get ready, say so, and go on for ever.

use std::fmt::Write as _;

/// A program under load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// What it is called in the table, and its unit.
    pub(crate) name: &'static str,
    /// Commands that it needs.
    pub(crate) needs: &'static [&'static str],
    /// The script, after [`PREAMBLE`].
    pub(crate) script: &'static str,
    /// Whether `perf record` is run beside it too.
    pub(crate) perf: bool,
}

/// Begins each script: `$1` is the folder to work in, `$2` a free port, `$3` takes the pid of who enters the cgroup (0 is
/// who writes). `ready` is called when what is to be measured runs; servers and compilers of strangers' code need no
/// root.
pub(crate) const PREAMBLE: &str = r#"set -eu
cd "$1"
port=$2
echo 0 > "$3"
as_nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups -- "$@"; }
ready() { echo ready; }
forever() { while :; do "$@" > output 2>&1 || { cat output; exit 1; }; done; }
# The folder, with these settings and these of the server.
serve_by_nginx() {
    cat > nginx.conf << END
pid $PWD/pid;
error_log $PWD/error.log;
daemon off;
worker_processes 1;
events { }
http {
    $1
    client_body_temp_path $PWD; proxy_temp_path $PWD; fastcgi_temp_path $PWD; uwsgi_temp_path $PWD; scgi_temp_path $PWD;
    server { $2 root $PWD; }
}
END
    as_nobody nginx -e "$PWD/error.log" -c "$PWD/nginx.conf" &
    sleep 1
}
"#;

/// All of them, in the order of the table.
pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "python3",
        needs: &["/usr/bin/python3"],
        script: "ready; /usr/bin/python3 work.py",
        perf: true,
    },
    Program { name: "perl", needs: &["/usr/bin/perl"], script: "ready; /usr/bin/perl work.pl", perf: false },
    Program {
        name: "postgres",
        needs: &["initdb", "postgres", "pg_isready", "pgbench"],
        script: r#"
as_nobody initdb --pgdata=data --username=bench --auth=trust --no-sync > output 2>&1 || { cat output; exit 1; }
as_nobody postgres -D data -k "$1" -p "$port" -c listen_addresses= > log 2>&1 &
until pg_isready -q -h "$1" -p "$port"; do sleep 0.1; done
pgbench="pgbench -h $1 -p $port -U bench"
$pgbench -i -s 5 postgres > output 2>&1 || { cat output; exit 1; }
ready
forever $pgbench -n -S -c 2 -T 3600 postgres &
forever $pgbench -n -b tpcb-like -c 2 -T 3600 postgres"#,
        perf: true,
    },
    Program {
        name: "nginx",
        needs: &["nginx", "ab"],
        script: r#"
head -c 4000 /etc/services > index.html
serve_by_nginx "access_log $1/access.log; gzip on; gzip_types *;" "listen 127.0.0.1:$port;"
ready
forever ab -q -n 20000 -c 8 -H 'Accept-Encoding: gzip' "http://127.0.0.1:$port/index.html""#,
        perf: false,
    },
    Program {
        name: "nginx-tls",
        needs: &["nginx", "ab", "openssl"],
        script: r#"
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost > output 2>&1
chmod a+r key.pem
head -c 400000 /dev/urandom > blob
serve_by_nginx 'access_log off;' \
    "listen 127.0.0.1:$port ssl; ssl_certificate $1/cert.pem; ssl_certificate_key $1/key.pem;"
ready
forever ab -q -n 1000 -c 4 -k "https://127.0.0.1:$port/blob""#,
        perf: false,
    },
    Program {
        name: "redis",
        needs: &["redis-server", "redis-benchmark"],
        script: r#"
as_nobody redis-server --port "$port" --bind 127.0.0.1 --save '' --dir "$1" > log &
sleep 1
ready
forever redis-benchmark -p "$port" -q -n 20000 -r 10000"#,
        perf: false,
    },
    Program {
        name: "gcc",
        needs: &["gcc", "as", "ld"],
        script: "ready; forever gcc -O2 large.c -o large",
        perf: true,
    },
    Program {
        name: "rustc",
        needs: &["rustc"],
        script: "ready; forever rustc --edition=2021 --crate-type=lib -O large.rs",
        perf: false,
    },
    Program { name: "node", needs: &["node"], script: "ready; node --perf-basic-prof work.js", perf: true },
    Program {
        name: "java",
        needs: &["java", "javac"],
        script: "javac Work.java; ready; java Work",
        perf: false,
    },
    Program {
        name: "java-fp",
        needs: &["java", "javac", "jcmd"],
        script: r#"
javac Work.java
java -XX:+PreserveFramePointer Work &
java=$!
sleep 3
jcmd "$java" Compiler.perfmap > output 2>&1 || { cat output; exit 1; }
ready
wait"#,
        perf: false,
    },
    Program {
        name: "bash",
        needs: &["bash"],
        script: r#"
ready
bash -c 'while :; do
    for i in 1 2 3 4 5; do text=$(echo "$i a b c" | tr a-z A-Z); (read -r one rest <<< "$text"; : "$one$rest"); done
    /bin/true
done'"#,
        perf: false,
    },
    Program {
        name: "openssl",
        needs: &["openssl"],
        script: r#"
speed() { openssl speed -seconds 1 -bytes 4096 "$@"; }
round() { speed sha256 sha512 rsa2048 ecdsap256; for name in aes-256-gcm aes-256-cbc chacha20-poly1305; do speed -evp $name; done; }
ready
forever round"#,
        perf: false,
    },
    Program {
        name: "xz",
        needs: &["xz"],
        script: "ready; forever sh -c 'cat large.* Work.java /bin/bash | xz -9 -T1 > compressed'",
        perf: false,
    },
    Program {
        name: "zstd",
        needs: &["zstd"],
        script: "ready; forever sh -c 'cat large.* Work.java /bin/bash | zstd -15 -T1 > compressed'",
        perf: false,
    },
    Program {
        name: "go",
        needs: &["go"],
        // The compiler is itself a large Go program.
        script: r#"
mkdir cache
export GOCACHE="$1/cache" GOPATH="$1/path" GOFLAGS=-mod=mod HOME="$1" CGO_ENABLED=0
go version > output
ready
forever go build -a -p 2 std"#,
        perf: false,
    },
];

/// The files that the scripts work with, by name.
pub(crate) fn files() -> [(&'static str, String); 6] {
    [
        ("work.py", include_str!("../../../loads/work.py").into()),
        ("work.pl", include_str!("../../../loads/work.pl").into()),
        ("work.js", include_str!("../../../loads/work.js").into()),
        ("Work.java", include_str!("../../../loads/Work.java").into()),
        ("large.c", large_c(300)),
        ("large.rs", large_rust(120)),
    ]
}

/// A C program of so many functions: branches, loops and calls for the optimiser to work on.
fn large_c(functions: u32) -> String {
    let mut text = String::from("#include <stdio.h>\n#include <string.h>\n");
    for i in 0..functions {
        let other = i.saturating_sub(1 + i % 7);
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            r"
int f{i}(int n, const char *s) {{
    int sum = {i}, table[16] = {{0}};
    for (int j = 0; j < n; j++) {{
        switch (s[j % 8] & 7) {{
        case 0: sum += j * {i}; break;
        case 1: sum ^= table[j & 15]; break;
        case 2: table[(j + {i}) & 15] = sum; break;
        case 3: if (strchr(s, 'a' + j % 26)) sum -= 3; break;
        default: sum = sum * 31 + table[sum & 15]; break;
        }}
    }}
    return sum{};
}}
",
            if i == 0 { String::new() } else { format!(" > 0 ? f{other}(n / 2, s) : sum") }
        );
    }
    let _ =
        writeln!(text, "int main(void) {{ return printf(\"%d\", f{}(9, \"bulkhead\")); }}", functions - 1);
    text
}

/// A Rust library of so many modules, each with types and generic code of its own.
pub(crate) fn large_rust(modules: u32) -> String {
    (0..modules).fold(String::new(), |mut text, i| {
        let _ = write!(
            text,
            r"
pub mod m{i} {{
    use std::collections::{{BTreeMap, HashMap}};
    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Item {{ pub name: String, pub values: Vec<[u32; {size}]>, pub parent: Option<Box<Item>> }}
    pub fn group(items: &[Item]) -> BTreeMap<Item, Vec<Item>> {{
        let mut groups: BTreeMap<Item, Vec<Item>> = BTreeMap::new();
        for item in items {{
            groups.entry(item.clone()).or_default().push(item.parent.as_deref().cloned().unwrap_or(item.clone()));
        }}
        groups.values_mut().for_each(|group| group.sort());
        groups
    }}
    pub fn index(items: &[Item]) -> HashMap<&Item, usize> {{
        items.iter().enumerate().filter(|(at, item)| at % {size} == item.values.len()).map(|(at, item)| (item, at)).collect()
    }}
}}
",
            size = i + 1
        );
        text
    })
}
