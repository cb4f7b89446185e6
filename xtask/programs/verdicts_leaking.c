// Bugs for programs of others: a library for python's ctypes, and an extension of sqlite3. Each forgets what it has made for a call.
#include <stdlib.h>
#include <string.h>

static char *volatile forgotten;

// What a header says, of which a copy is made; of one in ten it is never released.
__attribute__((noinline)) int parse_header(const char *text, int number) {
  size_t length = strlen(text);
  char *copy = malloc(length + 200);
  if (!copy) return -1;
  memcpy(copy, text, length + 1);
  int words = 1;
  for (char *at = copy; *at; at++) words += *at == ' ';
  if (number % 10) free(copy);
  else forgotten = copy;
  return words;
}

#ifdef SQLITE
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1

static void words_of(sqlite3_context *context, int count, sqlite3_value **values) {
  static int number;
  const char *text = count ? (const char *)sqlite3_value_text(values[0]) : "";
  sqlite3_result_int(context, parse_header(text ? text : "", number++));
}

int sqlite3_extension_init(sqlite3 *database, char **error, const sqlite3_api_routines *api) {
  (void)error;
  SQLITE_EXTENSION_INIT2(api);
  return sqlite3_create_function(database, "words", 1, SQLITE_UTF8, 0, words_of, 0, 0);
}
#endif
