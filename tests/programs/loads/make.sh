# Compiles five files of C++, two at a time, and links them. $UNDER: what make is run under.
set -e
for i in 1 2 3 4; do
  printf '#include <map>\n#include <regex>\n#include <string>\nint f%d(const std::string &s) { std::map<std::string, int> m; m[s] = %d; return std::regex_match(s, std::regex("a*")) ? m[s] : 0; }\n' $i $i >f$i.cpp
done
cat >main.cpp <<END
#include <cstdio>
#include <string>
int f1(const std::string &), f2(const std::string &), f3(const std::string &), f4(const std::string &);
int main() { std::printf("%d\n", f1("aa") + f2("aa") + f3("aa") + f4("b")); }
END
printf 'all: f1.o f2.o f3.o f4.o main.o\n\tg++ -o all $^\n%%.o: %%.cpp\n\tg++ -O1 -c -o $@ $<\n' >Makefile
$UNDER make -s -j2
./all
cksum *.o
