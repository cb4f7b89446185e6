# A database server of its own, and clients of pgbench that change it at once; what it says then is told. $UNDER: what the server is run under.
set -e
PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -1):$PATH
export LC_ALL=C
initdb --no-sync -A trust -U hound -D data >init
$UNDER postgres -D data -c listen_addresses= -c fsync=off -k "$PWD" >log 2>&1 &
server=$!
timeout 50 sh -c 'until pg_isready -q -h "$PWD"; do sleep 0.02; done'
pgbench -i -q -n -h "$PWD" -U hound postgres 2>>init
pgbench -n -c 4 -j 2 -t 50 -h "$PWD" -U hound postgres >bench 2>&1
psql -XqAt -h "$PWD" -U hound -d postgres <<END
select count(*) from pgbench_history;
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history);
select sum(i), length(string_agg(i::text, ',' order by i desc)) from generate_series(1, 20000) i;
END
pg_ctl stop -s -m fast -D data
wait $server
