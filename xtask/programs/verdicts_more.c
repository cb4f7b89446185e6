// More programs for `cargo xtask verdicts`: "more KIND SECONDS". Each of those that leak serves requests beside its leak, as services do: headers
// are read into lists, answers are written to streams, sessions expire, and the last lines of a log are kept. They end by _exit: what they keep
// is there at the end of the capture.
#define _GNU_SOURCE
#include <dirent.h>
#include <glib.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <regex.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#define SITE __attribute__((noinline))
#define NO_TAIL_CALL __asm__ volatile("")

static unsigned state = 1;

static unsigned next(void) { return state = state * 1664525u + 1013904223u, state >> 8; }
static void *made(size_t bytes) {
  void *at = calloc(1, bytes);
  if (!at) _exit(3);
  return at;
}
static char *copied(const char *text) {
  char *copy = strdup(text);
  if (!copy) _exit(3);
  return copy;
}
static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

// What those that leak do beside.
struct header { struct header *next; char *name, *value; };
SITE struct header *reads_headers(void) {
  struct header *first = NULL;
  for (int left = 3 + next() % 10; left; left--) {
    struct header *one = made(sizeof *one);
    char value[200];
    snprintf(value, sizeof value, "%0*u", (int)(1 + next() % 150), next());
    one->next = first, one->name = copied("X-Some-Header"), one->value = copied(value), first = one;
  }
  return first;
}
SITE void answers(struct header *first, char **text) {
  size_t length;
  FILE *out = open_memstream(text, &length);
  if (!out) _exit(3);
  for (struct header *one = first; one; one = one->next) fprintf(out, "%s: %s\r\n", one->name, one->value);
  fclose(out);
}
SITE void forgets_headers(struct header *first) {
  for (struct header *after; first; first = after) after = first->next, free(first->name), free(first->value), free(first);
}
SITE void logs(const char *answer) {
  static char *lines[600];
  static unsigned at;
  free(lines[at % 600]);
  if (asprintf(&lines[at++ % 600], "answered %zu bytes, \"%.*s\"", strlen(answer), (int)(next() % 90), answer) < 0) _exit(3);
  NO_TAIL_CALL;
}
// Sessions by their number, each for two seconds after it was last seen.
struct session { struct session *next; unsigned number; double seen; char *user; };
SITE void keeps_sessions(double time) {
  static struct session *table[256];
  unsigned number = next() % 100000;
  number = number % 4 ? number % 500 : number;
  struct session **at = &table[number % 256], *found = *at;
  while (found && found->number != number) found = found->next;
  if (!found) found = made(sizeof *found), found->user = made(20 + number % 60), found->number = number, found->next = *at, *at = found;
  found->seen = time;
  at = &table[next() % 256];
  while (*at) {
    struct session *one = *at;
    if (time - one->seen < 2) at = &one->next;
    else *at = one->next, free(one->user), free(one);
  }
}
static void serves(double time) {
  struct header *headers = reads_headers();
  char *answer;
  answers(headers, &answer);
  logs(answer);
  keeps_sessions(time);
  free(answer);
  forgets_headers(headers);
}

// Healthy kinds.
// An arena that each request begins anew: a few of its chunks stay for the next one.
struct chunk { struct chunk *next; size_t used; char room[4096]; };
static struct { struct chunk *full, *spare; int spares; } arena;
SITE void *carves(size_t bytes) {
  if (!arena.full || arena.full->used + bytes > sizeof arena.full->room) {
    struct chunk *one = arena.spare;
    if (one) arena.spare = one->next, arena.spares--;
    else one = made(sizeof *one);
    one->used = 0, one->next = arena.full, arena.full = one;
  }
  arena.full->used += bytes;
  return arena.full->room + arena.full->used - bytes;
}
SITE void resets(void) {
  for (struct chunk *one; (one = arena.full);) {
    arena.full = one->next;
    if (arena.spares < 6) one->next = arena.spare, arena.spare = one, arena.spares++;
    else free(one);
  }
}
// The settings are read anew every seven seconds; the old ones go when the new ones are complete.
struct settings { int number; char *names[400]; };
SITE void reads_settings_anew(double time) {
  static struct settings *current;
  static double due;
  if (time < due) return;
  struct settings *fresh = made(sizeof *fresh);
  for (fresh->number = 200 + next() % 200; fresh->names[fresh->number - 1] == NULL;)
    for (int at = 0; at < fresh->number; at++) fresh->names[at] = made(10 + next() % 80);
  for (int at = 0; current && at < current->number; at++) free(current->names[at]);
  free(current);
  current = fresh, due = time + 7;
}
static void has_arena(double time) {
  for (int left = 10 + next() % 600; left; left--) memset(carves(8 + next() % 120 / 8 * 8), 1, 8);
  logs("carved");
  resets();
  reads_settings_anew(time);
}

// A main loop with visitors, each of which has a timer that ends the visit.
static GHashTable *visitors;
static GQueue *history;
static GMainLoop *loop;
struct visit { char *name; GString *path; };
static void visit_ends(void *of) {
  struct visit *visit = of;
  g_free(visit->name), g_string_free(visit->path, TRUE), g_free(visit);
}
static int visit_is_over(void *name) { return g_hash_table_remove(visitors, name), G_SOURCE_REMOVE; }
SITE int visitor_comes(void *unused) {
  char *name = g_strdup_printf("visitor %u", next() % 20000);
  struct visit *visit = g_hash_table_lookup(visitors, name);
  if (!visit) {
    visit = g_new0(struct visit, 1);
    visit->name = g_strdup(name), visit->path = g_string_new("/");
    g_hash_table_insert(visitors, visit->name, visit);
    g_timeout_add_full(G_PRIORITY_DEFAULT, 1000 + next() % 3000, visit_is_over, g_strdup(name), g_free);
  }
  g_string_append_printf(visit->path, "page-%u/", next() % 1000);
  char **parts = g_strsplit(visit->path->str, "/", -1);
  g_queue_push_tail(history, g_strjoinv(" > ", parts));
  if (history->length > 800) g_free(g_queue_pop_head(history));
  g_strfreev(parts);
  g_free(name);
  return (void)unused, G_SOURCE_CONTINUE;
}
static int is_over(void *unused) { return (void)unused, g_main_loop_quit(loop), G_SOURCE_REMOVE; }
static void has_main_loop(double seconds) {
  visitors = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, visit_ends);
  history = g_queue_new();
  loop = g_main_loop_new(NULL, FALSE);
  g_timeout_add(1, visitor_comes, NULL);
  g_timeout_add(seconds * 1000, is_over, NULL);
  g_main_loop_run(loop);
}

// Leaks.
// A rule that does not match is not freed.
SITE int matches_rule(int turn) {
  regex_t rule;
  char text[60];
  snprintf(text, sizeof text, "^/(shop|user|static)/[a-z]+/%d[0-9]*$", turn % 7);
  if (regcomp(&rule, text, REG_EXTENDED)) _exit(3);
  snprintf(text, sizeof text, turn % 30 ? "/shop/cart/%d99" : "/admin/%d", turn % 7);
  if (regexec(&rule, text, 0, NULL, 0)) return 0;
  return regfree(&rule), 1;
}
// What an upstream that does not answer is called, and why: one request in 300.
SITE int asks_upstream(int turn) {
  char host[40], *why;
  snprintf(host, sizeof host, "upstream-%d.example.org", turn % 20);
  char *name = copied(host);
  if (turn % 300 == 7) {
    if (asprintf(&why, "request %d: %s does not answer: connection timed out after %d ms", turn, name, 1000 + turn % 9) < 0) _exit(3);
    return (int)strlen(why) > turn ? -1 : -2;
  }
  return free(name), 0;
}
// An order with an item that has no price: its document stays.
SITE double reads_order(int turn) {
  char text[4000];
  int length = snprintf(text, sizeof text, "<order number='%d'>", turn);
  for (int items = 3 + next() % 20; items; items--)
    length += snprintf(text + length, sizeof text - length, "<item%s><name>thing %u</name><count>%u</count></item>",
                       turn % 12 || items > 1 ? " price='7.5'" : "", next() % 1000, next() % 9);
  length += snprintf(text + length, sizeof text - length, "</order>");
  xmlDoc *order = xmlReadMemory(text, length, "order.xml", NULL, 0);
  if (!order) _exit(3);
  double sum = 0;
  for (xmlNode *item = xmlDocGetRootElement(order)->children; item; item = item->next) {
    xmlChar *price = xmlGetProp(item, BAD_CAST "price");
    if (!price) return -1;
    sum += atof((char *)price);
    xmlFree(price);
  }
  return xmlFreeDoc(order), sum;
}
// What was damaged on its way is not unpacked any further, nor is its stream ended.
SITE void packs(unsigned char *packed, unsigned long *length) {
  unsigned char text[3000];
  for (size_t at = 0; at < sizeof text; at++) text[at] = 'a' + next() % 4;
  if (compress2(packed, length, text, sizeof text, 1) != Z_OK) _exit(3);
  NO_TAIL_CALL;
}
SITE int unpacks(unsigned char *packed, unsigned long length) {
  unsigned char text[3000];
  z_stream stream = {.next_in = packed, .avail_in = length, .next_out = text, .avail_out = sizeof text};
  if (inflateInit(&stream) != Z_OK) _exit(3);
  if (inflate(&stream, Z_FINISH) != Z_STREAM_END) return -1;
  return inflateEnd(&stream);
}
static void packs_and_unpacks(int turn) {
  static unsigned char packed[4000];
  static unsigned long length;
  if (turn % 25 == 0) length = sizeof packed, packs(packed, &length);
  unsigned char before = packed[length / 2];
  if (turn % 100 == 99) packed[length / 2] ^= 0x55, packed[length - 1] ^= 1;
  unpacks(packed, length);
  packed[length / 2] = before;
  if (turn % 100 == 99) packed[length - 1] ^= 1;
}
// A customer who is not found: the statement is not finalized.
static sqlite3 *database;
SITE sqlite3_stmt *prepares_lookup(int customer) {
  char text[200];
  snprintf(text, sizeof text, "SELECT name, sum(price) FROM customer JOIN sale ON sale.customer = id WHERE id = %d GROUP BY name", customer);
  sqlite3_stmt *statement;
  if (sqlite3_prepare_v2(database, text, -1, &statement, NULL)) _exit(3);
  return statement;
}
SITE double looks_up(int customer) {
  sqlite3_stmt *statement = prepares_lookup(customer);
  if (sqlite3_step(statement) != SQLITE_ROW) return -1;
  double sum = sqlite3_column_double(statement, 1);
  return sqlite3_finalize(statement), sum;
}
static void executes(const char *text) { if (sqlite3_exec(database, text, NULL, NULL, NULL)) _exit(3); }
SITE void has_customers(int turn) {
  char text[200];
  if (!database) {
    if (sqlite3_open(":memory:", &database)) _exit(3);
    executes("CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE sale (customer INTEGER, price REAL); CREATE INDEX of ON sale (customer)");
    for (int at = 0; at < 700; at++) snprintf(text, sizeof text, "INSERT INTO customer VALUES (%d, 'customer %d')", at, at), executes(text);
    executes("INSERT INTO sale SELECT id, id * 1.5 FROM customer");
  }
  looks_up(next() % 800);
  if (turn % 3 == 0) snprintf(text, sizeof text, "UPDATE sale SET price = price + 1 WHERE customer = %u", next() % 700), executes(text);
}
// A directory in which something was found is closed; one in which it was not is not.
SITE int finds_file(const char *name) {
  DIR *folder = opendir("/etc");
  if (!folder) _exit(3);
  for (struct dirent *entry; (entry = readdir(folder));)
    if (!strcmp(entry->d_name, name)) return closedir(folder), 1;
  return 0;
}
// Ten come in a turn, and nine go.
struct event { struct event *next; char *what; };
static struct event *first_event, **last_event = &first_event;
SITE void receives_event(void) {
  struct event *one = made(sizeof *one);
  one->what = made(40 + next() % 300);
  *last_event = one, last_event = &one->next;
}
SITE void handles_event(void) {
  struct event *one = first_event;
  if (!one) return;
  if (!(first_event = one->next)) last_event = &first_event;
  free(one->what), free(one);
}
// The C library never releases what a variable of the environment once was.
SITE void names_trace(int turn) {
  char value[60];
  snprintf(value, sizeof value, "00-%08x%08x-%08x-01", next(), turn, next());
  setenv("TRACEPARENT", value, 1);
  NO_TAIL_CALL;
}
// Keys that nobody frees, for the table was not told how; and an error that nobody looks at.
SITE char *names_page(void) { char *name = g_strdup_printf("page number %u of many", next() % 3000); NO_TAIL_CALL; return name; }
static void counts_page(void) {
  static GHashTable *counts;
  if (!counts) counts = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, NULL);
  char *name = names_page();
  size_t count = GPOINTER_TO_SIZE(g_hash_table_lookup(counts, name));
  g_hash_table_insert(counts, name, GSIZE_TO_POINTER(count + 1));
  if (g_hash_table_size(counts) > 2000) g_hash_table_remove_all(counts);
}
SITE void reads_settings(void) {
  GError *error = NULL;
  char *text = NULL;
  if (g_file_get_contents("/nowhere/settings.ini", &text, NULL, &error)) g_free(text);
  NO_TAIL_CALL;
}

int main(int count, char **words) {
  if (count < 3) return 2;
  const char *kind = words[1];
  double begun = now(), time = begun, end = begun + atof(words[2]);
  int is_known = 0;
#define IS(name) (!strcmp(kind, name) && (is_known = 1))
  // Each directory that is not closed has a descriptor.
  struct rlimit files;
  if (!getrlimit(RLIMIT_NOFILE, &files)) files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
  xmlInitParser();
  int turn = 0;
  if (IS("loop")) has_main_loop(atof(words[2]));
  for (; (time = now()) < end; turn++) {
    if (IS("arena")) has_arena(time);
    else serves(time);
    if (IS("regex")) matches_rule(turn);
    if (IS("upstream")) asks_upstream(turn);
    if (IS("order")) reads_order(turn);
    if (IS("unpack")) packs_and_unpacks(turn);
    if (IS("statement")) has_customers(turn);
    if (IS("folder")) finds_file(turn % 40 ? "passwd" : "passwords");
    if (IS("queue")) {
      for (int times = 0; times < 10; times++) receives_event();
      for (int times = 8 + next() % 3; times; times--) handles_event();
    }
    if (IS("environment") && turn % 4 == 0) names_trace(turn);
    if (IS("keys")) {
      counts_page();
      if (turn % 40 == 0) reads_settings();
    }
    if (!is_known) return 2;
    usleep(600);
  }
  printf("turns %d\n", turn);
  fflush(stdout);
  _exit(0);
}
