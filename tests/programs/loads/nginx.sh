# A server with two workers, asked for a page that it compresses and for one that is not there. $UNDER: what it is run under.
set -e
cat >conf <<END
worker_processes 2; daemon off; pid $PWD/pid; error_log $PWD/error.log;
events { worker_connections 64; }
http { access_log off; gzip on; gzip_types *; client_body_temp_path $PWD/1; proxy_temp_path $PWD/2; fastcgi_temp_path $PWD/3;
uwsgi_temp_path $PWD/4; scgi_temp_path $PWD/5; server { listen unix:$PWD/socket; root $PWD; } }
END
seq 20000 >page.html
$UNDER /usr/sbin/nginx -c "$PWD/conf" -e "$PWD/error.log" &
server=$!
ask() { curl -s --compressed --unix-socket socket "http://here/$1"; }
timeout 50 sh -c 'until curl -s --unix-socket socket http://here/page.html >/dev/null; do sleep 0.02; done'
for i in $(seq 100); do ask page.html; ask none; done | cksum
kill -QUIT "$(cat pid)"
wait $server
