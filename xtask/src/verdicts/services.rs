//! Services of Debian's packages, each on a port of its own, with all it writes in a directory of its own.
//!
//! What they keep for their clients is bounded, and complete within a minute.

use super::ground::{Ground, child_of};
use super::subject::{Begun, Mode, Subject, service};
use crate::programs;
use anyhow::{Context, Result};
use std::process::Command;

/// All of them.
pub const ALL: &[Subject] = &[
    service("redis", Mode::Full, "strings, lists, hashes and sorted sets of bounded keys; keys that expire", redis),
    service("memcached", Mode::Full, "3,000 keys, half of which expire", memcached),
    service("postgres", Mode::Tree, "updates, joins, groups; sessions come and go", postgres),
    service("nginx", Mode::Full, "files, compressed or not, from a cache of 20 open ones; the worker", nginx),
    service("apache2", Mode::Tree, "files, compressed or not; mpm_event", apache2),
    service("lighttpd", Mode::Full, "files, from a cache of what they are", lighttpd),
    service("node", Mode::Sampled, "an HTTP server that parses JSON and keeps the last 500 answers", node),
    service("python", Mode::Sampled, "an HTTP server of threads that parses JSON and keeps the last 500 answers", python),
    service("haproxy", Mode::Full, "HTTP to a server behind it; a table of 2,000 users that expire", haproxy),
    service("mosquitto", Mode::Sampled, "MQTT: 200 topics with retained messages; subscribers come and go", mosquitto),
    service("unbound", Mode::Full, "names of another server, whose answers expire, in a cache that is too small for them", unbound),
];

fn redis(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new(programs::redis_server()?);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).current_dir(&ground.at);
    Ok(Begun::Running(ground.serve(&command, port, "redis", 1500, None)?))
}

fn memcached(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new("memcached");
    command.args(["-u", "nobody", "-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-m", "64", "-t", "2"]);
    Ok(Begun::Running(ground.serve(&command, port, "memcached", 1500, None)?))
}

fn postgres(ground: &Ground) -> Result<Begun> {
    let (server, port) = ground.postgres("server")?;
    Ok(Begun::Running(ground.running(server, "postgres", &port.to_string(), 300, None)))
}

fn nginx(ground: &Ground) -> Result<Begun> {
    let (port, pages, at) = (ground.port()?, ground.pages()?, ground.at.display());
    let config = format!(
        "daemon off;\nuser nobody nogroup;\nworker_processes 1;\npid {at}/pid;\nerror_log {at}/error.log warn;\nevents {{ worker_connections 256; }}\n\
         http {{\n access_log {at}/access.log;\n gzip on;\n gzip_types *;\n gzip_min_length 100;\n\
         open_file_cache max=20 inactive=5s;\n keepalive_requests 1000000;\n client_body_temp_path {at}/body;\n proxy_temp_path {at}/proxy;\n fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi;\n scgi_temp_path {at}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {pages}; }}\n}}\n"
    );
    let config = ground.write("nginx.conf", &config)?;
    let mut command = Command::new("/usr/sbin/nginx");
    command.args(["-e", &format!("{at}/error.log"), "-c"]).arg(config);
    let mut running = ground.serve(&command, port, "http", 800, None)?;
    let master = running.pid;
    ground.awaited("nginx has a worker", &mut running.server.0, || child_of(master).is_some())?;
    running.pid = child_of(master).context("nginx has no worker")?;
    Ok(Begun::Running(running))
}

fn apache2(ground: &Ground) -> Result<Begun> {
    let (port, pages, at) = (ground.port()?, ground.pages()?, ground.at.display());
    let modules = ["mpm_event", "authz_core", "filter", "deflate", "mime", "dir"];
    let modules: String = modules.iter().map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")).collect();
    let config = format!(
        "{modules}ServerRoot {at}\nServerName here\nListen 127.0.0.1:{port}\nPidFile {at}/pid\nErrorLog {at}/error.log\nUser nobody\nGroup nogroup\n\
         Mutex file:{at}\nTypesConfig /etc/mime.types\nStartServers 2\nServerLimit 2\nThreadsPerChild 16\nMaxRequestWorkers 32\n\
         MaxConnectionsPerChild 0\nKeepAlive On\nMaxKeepAliveRequests 0\nKeepAliveTimeout 30\nDocumentRoot {pages}\n\
         <Directory {pages}>\n Require all granted\n</Directory>\nAddOutputFilterByType DEFLATE text/html\n"
    );
    let config = ground.write("apache2.conf", &config)?;
    let mut command = Command::new("/usr/sbin/apache2");
    command.args(["-D", "FOREGROUND", "-f"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "http", 800, None)?))
}

fn lighttpd(ground: &Ground) -> Result<Begun> {
    let (port, pages) = (ground.port()?, ground.pages()?);
    let config = format!(
        "server.document-root = \"{pages}\"\nserver.port = {port}\nserver.bind = \"127.0.0.1\"\nserver.username = \"nobody\"\n\
         server.groupname = \"nogroup\"\nserver.max-keep-alive-requests = 100000\n\
         mimetype.assign = ( \".html\" => \"text/html\" )\n"
    );
    let config = ground.write("lighttpd.conf", &config)?;
    let mut command = Command::new("/usr/sbin/lighttpd");
    command.arg("-D").arg("-f").arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "http", 800, None)?))
}

fn node(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new("/usr/bin/node");
    command.arg(programs::source("verdicts_server.js")).arg(port.to_string());
    Ok(Begun::Running(ground.serve(&command, port, "json", 600, None)?))
}

/// Each object of python's is a block, not only what it cuts them from.
fn python(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new(programs::python());
    command.arg(programs::source("verdicts_server.py")).args(["http", &port.to_string()]).env("PYTHONMALLOC", "malloc");
    Ok(Begun::Running(ground.serve(&command, port, "json", 300, None)?))
}

fn haproxy(ground: &Ground) -> Result<Begun> {
    let (port, behind) = (ground.port()?, ground.port()?);
    let config = format!(
        "global\n user nobody\n group nogroup\n maxconn 200\n nbthread 2\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         frontend in\n bind 127.0.0.1:{port}\n stick-table type string len 32 size 2k expire 5s store http_req_rate(5s)\n\
         http-request track-sc0 hdr(x-user)\n http-response set-header X-Seen yes\n default_backend out\n\
         backend out\n compression algo gzip\n server one 127.0.0.1:{behind}\n"
    );
    let config = ground.write("haproxy.conf", &config)?;
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-f"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "haproxy", 600, Some(behind))?))
}

fn mosquitto(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let config =
        format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser nobody\nlog_dest stderr\nlog_type error\n");
    let config = ground.write("mosquitto.conf", &config)?;
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.arg("-c").arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "mqtt", 600, None)?))
}

fn unbound(ground: &Ground) -> Result<Begun> {
    let (port, other) = (ground.port()?, ground.port()?);
    let config = format!(
        "server:\n do-daemonize: no\n username: nobody\n chroot: \"\"\n directory: {at}\n pidfile: {at}/pid\n use-syslog: no\n\
         interface: 127.0.0.1\n port: {port}\n num-threads: 1\n module-config: iterator\n do-not-query-localhost: no\n\
         msg-cache-size: 64k\n rrset-cache-size: 64k\n infra-cache-numhosts: 100\n\
         forward-zone:\n name: .\n forward-addr: 127.0.0.1@{other}\nremote-control:\n control-enable: no\n",
        at = ground.at.display()
    );
    let config = ground.write("unbound.conf", &config)?;
    let mut command = Command::new("/usr/sbin/unbound");
    command.arg("-c").arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "dns", 800, Some(other))?))
}
