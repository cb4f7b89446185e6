// steers.c as C++.
#include "steers.c"
