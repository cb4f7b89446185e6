// A file that makes the compiler itself work: many instantiations of containers, algorithms and a small expression template library.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>

template <int N> struct Tag {
    int value = N;
    bool operator<(const Tag &other) const { return value < other.value; }
};

template <int N> struct Chain {
    using Inner = typename Chain<N - 1>::Type;
    using Type = std::tuple<Tag<N>, std::vector<Inner *>, std::map<int, Tag<N>>>;
};
template <> struct Chain<0> {
    using Type = std::tuple<Tag<0>>;
};

template <int N> int exercise() {
    std::map<Tag<N>, std::vector<std::string>> names;
    std::set<Tag<N>> tags;
    std::variant<int, Tag<N>, std::string> choice = Tag<N>{};
    std::function<int(int)> add = [](int x) { return x + N; };
    typename Chain<N % 24>::Type chain{};
    names[Tag<N>{}].push_back(std::to_string(N));
    tags.insert(Tag<N>{});
    std::vector<int> numbers(N + 8);
    std::iota(numbers.begin(), numbers.end(), N);
    std::sort(numbers.begin(), numbers.end(), [](int a, int b) { return (a ^ N) < (b ^ N); });
    return add(static_cast<int>(names.size() + tags.size() + choice.index())) + std::get<0>(chain).value + numbers[0];
}

template <int... Ns> int all(std::integer_sequence<int, Ns...>) { return (exercise<Ns>() + ...); }

int answer() { return all(std::make_integer_sequence<int, 8>{}); }
