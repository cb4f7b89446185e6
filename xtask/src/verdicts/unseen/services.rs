//! Services of Debian's packages that were chosen later, for what they are in daily use: caches, proxies, pools of connections, resolvers,
//! queues, directories, and the servers of three more languages.
//!
//! What they keep for their clients is bounded by their configuration or by the load, and complete within a minute.

use crate::verdicts::ground::{Ground, NOBODY, child_of};
use crate::verdicts::subject::{Begun, Mode, Subject, service};
use crate::{exec, programs};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// All of them.
pub const ALL: &[Subject] = &[
    service("squid", Mode::Full, "a cache of 2 MB of memory, before a server; all pages are new ones", squid),
    service("varnish", Mode::Sampled, "a cache of 8 MB, before a server; all pages are new ones; the worker", varnish),
    service("tinyproxy", Mode::Full, "a proxy before a server, each request on a connection and a thread of its own", tinyproxy),
    service("stunnel", Mode::Full, "TLS before a server; sessions come and go", stunnel),
    service("bind9", Mode::Full, "names of another server, whose answers expire", bind9),
    service("pdns-recursor", Mode::Sampled, "names of another server, 300 of which it keeps, and 200 answers", pdns_recursor),
    service("nutcracker", Mode::Full, "the commands of redis, spread over two names of one server", nutcracker),
    service("pgbouncer", Mode::Full, "a pool of three connections to postgres, each for 20 s; sessions come and go", pgbouncer),
    service("beanstalkd", Mode::Full, "a queue of about 1,000 jobs, some of which wait", beanstalkd),
    service("ngircd", Mode::Full, "chat in 30 channels; people come and go", ngircd),
    service("slapd", Mode::Sampled, "a directory of 500 people, who are found and changed; guests come and go", slapd),
    service("rsyslog", Mode::Sampled, "lines that are parsed, written anew and sent on", rsyslog),
    service("proftpd", Mode::Tree, "files that are fetched, listed and stored; a process for each session", proftpd),
    service("php-fpm", Mode::Tree, "a page of php that parses JSON; processes that end after 500 requests", php_fpm),
    service("uwsgi", Mode::Tree, "an application of python with a database in memory; two processes of three threads", uwsgi),
    service("webrick", Mode::Sampled, "an HTTP server of ruby's threads that parses JSON and keeps the last 500 answers", webrick),
];

fn squid(ground: &Ground) -> Result<Begun> {
    let (port, behind, at) = (ground.port()?, ground.port()?, ground.give("squid", NOBODY)?);
    let at = at.display();
    // Not by cache_peer: one that does not listen when squid begins is not asked.
    // What the other server sends has no date: it is fresh for a minute, all of which is more than there is room for.
    let config = format!(
        "http_port 127.0.0.1:{port} accel allow-direct no-vhost defaultsite=127.0.0.1:{behind}\n\
         http_access allow all\nrefresh_pattern . 1 20% 1\ncache_mem 2 MB\nmaximum_object_size_in_memory 64 KB\n\
         access_log stdio:{at}/access.log\ncache_log {at}/cache.log\ncache_store_log none\npid_filename {at}/pid\ncoredump_dir {at}\n\
         cache_effective_user nobody\ncache_effective_group nogroup\nvisible_hostname here\npinger_enable off\nnetdb_filename none\n\
         shutdown_lifetime 0 seconds\nmax_filedescriptors 1024\n"
    );
    let config = ground.write("squid.conf", &config)?;
    let mut command = Command::new("/usr/sbin/squid");
    command.args(["-N", "-f"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "haproxy", 400, Some(behind))?))
}

fn varnish(ground: &Ground) -> Result<Begun> {
    let (port, behind) = (ground.port()?, ground.port()?);
    let mut command = Command::new("/usr/sbin/varnishd");
    command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,8M", "-l", "8M"]).arg("-n").arg(ground.at.join("varnish"));
    command.args(["-a", &format!("127.0.0.1:{port}"), "-b", &format!("127.0.0.1:{behind}")]);
    command.args(["-p", "thread_pools=1", "-p", "thread_pool_min=10", "-p", "thread_pool_max=50"]);
    // What it knows of pages that are gone it keeps for one to two times as long; 180 s if nothing is said, and then nothing is full in five minutes.
    command.args(["-p", "critbit_cooloff=60"]);
    let mut running = ground.serve(&command, port, "haproxy", 500, Some(behind))?;
    let master = running.pid;
    // It has compilers for children, too, before.
    let worker =
        || child_of(master).filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "cache-main"));
    ground.awaited("varnish has a worker", &mut running.server.0, || worker().is_some())?;
    running.pid = worker().context("varnish has no worker")?;
    Ok(Begun::Running(running))
}

fn tinyproxy(ground: &Ground) -> Result<Begun> {
    let (port, behind, at) = (ground.port()?, ground.port()?, ground.give("tinyproxy", NOBODY)?);
    let at = at.display();
    let config = format!(
        "User nobody\nGroup nogroup\nPort {port}\nListen 127.0.0.1\nTimeout 30\nMaxClients 50\nLogFile \"{at}/log\"\nLogLevel Warning\n\
         PidFile \"{at}/pid\"\nReverseOnly Yes\nReversePath \"/\" \"http://127.0.0.1:{behind}/\"\nAddHeader \"X-Seen\" \"yes\"\n"
    );
    let config = ground.write("tinyproxy.conf", &config)?;
    let mut command = Command::new("/usr/bin/tinyproxy");
    command.arg("-d").arg("-c").arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "once", 200, Some(behind))?))
}

fn stunnel(ground: &Ground) -> Result<Begun> {
    let (port, behind, at) = (ground.port()?, ground.port()?, ground.at.display());
    let mut key = Command::new("openssl");
    key.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=here", "-days", "2"]);
    key.args(["-keyout", &format!("{at}/key"), "-out", &format!("{at}/certificate")]);
    exec::output(&mut key)?;
    let config = format!(
        "foreground = yes\nsyslog = no\ndebug = warning\npid =\nsetuid = nobody\nsetgid = nogroup\nsessionCacheSize = 50\n\
         [pages]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{behind}\ncert = {at}/certificate\nkey = {at}/key\n"
    );
    let config = ground.write("stunnel.conf", &config)?;
    let mut command = Command::new("/usr/bin/stunnel4");
    command.arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "tls", 400, Some(behind))?))
}

fn bind9(ground: &Ground) -> Result<Begun> {
    let (port, other, at) = (ground.port()?, ground.port()?, ground.give("bind9", NOBODY)?);
    let at = at.display();
    let config = format!(
        "options {{ directory \"{at}\"; pid-file \"{at}/pid\"; session-keyfile none; listen-on port {port} {{ 127.0.0.1; }};\n\
         listen-on-v6 {{ none; }}; forward only; forwarders {{ 127.0.0.1 port {other}; }}; dnssec-validation no; max-cache-size 2m; }};\n\
         controls {{ }};\nlogging {{ category default {{ null; }}; }};\n"
    );
    let config = ground.write("named.conf", &config)?;
    let mut command = Command::new("/usr/sbin/named");
    command.args(["-f", "-u", "nobody", "-n", "2", "-c"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "dns", 600, Some(other))?))
}

fn pdns_recursor(ground: &Ground) -> Result<Begun> {
    let (port, other, at) = (ground.port()?, ground.port()?, ground.give("recursor", NOBODY)?);
    let config = format!(
        "local-address=127.0.0.1\nlocal-port={port}\nforward-zones-recurse=.=127.0.0.1:{other}\ndont-query=\ndnssec=off\nsocket-dir={at}\n\
         daemon=no\nwrite-pid=no\ndisable-syslog=yes\nloglevel=3\nquiet=yes\nsetuid=nobody\nsetgid=nogroup\nthreads=2\nsecurity-poll-suffix=\n\
         max-cache-entries=300\nmax-packetcache-entries=200\nconfig-dir={at}\n",
        at = at.display()
    );
    ground.write("recursor/recursor.conf", &config)?;
    let mut command = Command::new("/usr/sbin/pdns_recursor");
    command.arg(format!("--config-dir={}", at.display()));
    Ok(Begun::Running(ground.serve(&command, port, "dns", 600, Some(other))?))
}

/// Two redis-servers would say nothing more than two names of one do.
fn nutcracker(ground: &Ground) -> Result<Begun> {
    let (port, statistics, behind) = (ground.port()?, ground.port()?, ground.port()?);
    let mut redis = Command::new(programs::redis_server()?);
    redis.args(["--port", &behind.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).current_dir(&ground.at);
    let mut redis = ground.start("redis", &redis)?;
    ground.listens(behind, &mut redis.0)?;
    let config = format!(
        "pool:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  auto_eject_hosts: false\n  redis: true\n  servers:\n\
         \x20  - 127.0.0.1:{behind}:1 one\n   - 127.0.0.1:{behind}:1 two\n"
    );
    let config = ground.write("nutcracker.yml", &config)?;
    let mut command = Command::new("/usr/sbin/nutcracker");
    command.args(["-a", "127.0.0.1", "-s", &statistics.to_string(), "-v", "4", "-c"]).arg(config);
    let mut running = ground.serve(&command, port, "redis", 1000, None)?;
    running.behind = Some(redis);
    Ok(Begun::Running(running))
}

fn pgbouncer(ground: &Ground) -> Result<Begun> {
    let (postgres, behind) = ground.postgres("postgres")?;
    let port = ground.port()?;
    let config = format!(
        "[databases]\npostgres = host=127.0.0.1 port={behind} user=postgres dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nmax_client_conn = 50\ndefault_pool_size = 3\n\
         server_lifetime = 20\nserver_idle_timeout = 5\nuser = nobody\n"
    );
    let config = ground.write("pgbouncer.ini", &config)?;
    let mut command = Command::new("/usr/sbin/pgbouncer");
    command.arg(config);
    let mut running = ground.serve(&command, port, "postgres", 300, None)?;
    running.behind = Some(postgres);
    Ok(Begun::Running(running))
}

fn beanstalkd(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new("/usr/bin/beanstalkd");
    command.args(["-u", "nobody", "-l", "127.0.0.1", "-p", &port.to_string()]);
    Ok(Begun::Running(ground.serve(&command, port, "jobs", 800, None)?))
}

fn ngircd(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let config = format!(
        "[Global]\nName = irc.example\nInfo = chat\nListen = 127.0.0.1\nPorts = {port}\nMotdPhrase = welcome\nServerUID = nobody\n\
         ServerGID = nogroup\nPidFile =\n[Limits]\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n"
    );
    let config = ground.write("ngircd.conf", &config)?;
    let mut command = Command::new("/usr/sbin/ngircd");
    command.args(["--nodaemon", "--config"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "irc", 400, None)?))
}

fn slapd(ground: &Ground) -> Result<Begun> {
    let (port, data, at) = (ground.port()?, ground.give("data", NOBODY)?, ground.at.display());
    let config = format!(
        "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {at}/data/pid\n\
         database mdb\nsuffix dc=example\ndirectory {data}\nrootdn cn=admin,dc=example\nrootpw secret\nmaxsize 67108864\ndbnosync\n\
         index objectClass eq\nindex cn,sn eq,sub\n",
        data = data.display()
    );
    let config = ground.write("slapd.conf", &config)?;
    let mut people = "dn: dc=example\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n".to_owned();
    for number in 0..500 {
        people += &format!("\ndn: cn=person{number},dc=example\nobjectClass: person\ncn: person{number}\nsn: name{}\n", number % 50);
    }
    let people = ground.write("people.ldif", &people)?;
    let as_nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--pdeathsig", "TERM", "--", program, "-f"]);
        command.arg(&config);
        command
    };
    exec::output(as_nobody("/usr/sbin/slapadd").arg("-q").arg("-l").arg(people))?;
    let mut command = as_nobody("/usr/sbin/slapd");
    command.args(["-d", "0", "-h", &format!("ldap://127.0.0.1:{port}")]);
    Ok(Begun::Running(ground.serve(&command, port, "ldap", 300, None)?))
}

fn rsyslog(ground: &Ground) -> Result<Begun> {
    let (port, behind) = (ground.port()?, ground.port()?);
    // What it says itself goes nowhere.
    let config = format!(
        "global(workDirectory=\"{at}\")\nmodule(load=\"imtcp\")\n\
         template(name=\"anew\" type=\"string\" string=\"<%PRI%>%TIMESTAMP:::date-rfc3339% %HOSTNAME% %programname% %msg:R,ERE,1,DFLT:user=([0-9]+)--end% %msg%\\n\")\n\
         ruleset(name=\"on\") {{\n set $!words = field($msg, 32, 2);\n\
         if $programname startswith \"program1\" then {{ set $!kind = \"one\"; }}\n\
         action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{behind}\" protocol=\"tcp\" template=\"anew\" action.resumeInterval=\"1\"\n\
         action.resumeRetryCount=\"-1\" queue.type=\"LinkedList\" queue.size=\"2000\")\n}}\n\
         input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"on\")\n",
        at = ground.at.display()
    );
    let config = ground.write("rsyslog.conf", &config)?;
    let mut command = Command::new("/usr/sbin/rsyslogd");
    command.args(["-n", "-i", "NONE", "-f"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "syslog", 500, Some(behind))?))
}

fn proftpd(ground: &Ground) -> Result<Begun> {
    let (port, pages, at) = (ground.port()?, ground.pages()?, ground.at.display());
    ground.give("pages", NOBODY)?;
    let word = exec::output(Command::new("openssl").args(["passwd", "-6", "secret"]))?;
    let users = ground.write("users", &format!("user:{}:{NOBODY}:{NOBODY}::{pages}:/bin/false\n", word.trim()))?;
    // It does not trust a file that others can read.
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).context("cannot hide the password")?;
    let config = format!(
        "ServerType standalone\nServerName here\nDefaultAddress 127.0.0.1\nSocketBindTight on\nPort {port}\nUser nobody\nGroup nogroup\n\
         UseIPv6 off\nPidFile {at}/pid\nScoreboardFile {at}/scoreboard\nDelayTable none\nSystemLog {at}/log\nTransferLog none\nWtmpLog off\n\
         AuthOrder mod_auth_file.c\nAuthUserFile {users}\nAuthPAM off\nRequireValidShell off\nUseReverseDNS off\nMaxInstances 30\n\
         TimesGMT on\nAllowOverwrite on\n",
        users = users.display()
    );
    let config = ground.write("proftpd.conf", &config)?;
    let mut command = Command::new("/usr/sbin/proftpd");
    command.args(["--nodaemon", "--config"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "ftp", 100, None)?))
}

fn php_fpm(ground: &Ground) -> Result<Begun> {
    let (port, at) = (ground.port()?, ground.at.display());
    let config = format!(
        "[global]\npid = {at}/pid\nerror_log = {at}/log\n[pages]\nuser = root\ngroup = root\nlisten = 127.0.0.1:{port}\n\
         pm = dynamic\npm.max_children = 6\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3\npm.max_requests = 500\n"
    );
    let config = ground.write("php-fpm.conf", &config)?;
    let mut command = Command::new(php_fpm_program()?);
    // Each object of php's is a block, not only what it cuts them from.
    command.env("USE_ZEND_ALLOC", "0");
    command.args(["--nodaemonize", "--allow-to-run-as-root", "--fpm-config"]).arg(config);
    Ok(Begun::Running(ground.serve(&command, port, "fastcgi", 200, None)?))
}

/// Its version is in its name.
fn php_fpm_program() -> Result<std::path::PathBuf> {
    let programs = fs::read_dir("/usr/sbin").context("there is no /usr/sbin")?.flatten();
    let named = programs.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/php-fpm"));
    named.max().context("there is no php-fpm")
}

fn uwsgi(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new("/usr/bin/uwsgi-core");
    command.args(["--plugins-dir", "/usr/lib/uwsgi/plugins", "--plugin", "python3", "--http11-socket", &format!("127.0.0.1:{port}")]);
    // It would begin anew when it is told to end.
    command.args(["--master", "--die-on-term", "--processes", "2", "--threads", "3", "--disable-logging", "--wsgi-file"]);
    command.arg(programs::source("verdicts_wsgi.py")).current_dir(&ground.at).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(Begun::Running(ground.serve(&command, port, "json", 300, None)?))
}

fn webrick(ground: &Ground) -> Result<Begun> {
    let port = ground.port()?;
    let mut command = Command::new("/usr/bin/ruby");
    command.arg(programs::source("verdicts_server.rb")).arg(port.to_string());
    Ok(Begun::Running(ground.serve(&command, port, "json", 200, None)?))
}
