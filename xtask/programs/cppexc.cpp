// cppexc ROUNDS: C++ containers of strings, with an exception thrown through several frames every few operations.
#include <cstdio>
#include <cstdlib>
#include <list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

struct Order {
    std::string customer;
    std::vector<std::string> lines;
};

class Shop {
    std::map<std::string, std::shared_ptr<Order>> orders;
    std::unordered_map<unsigned, std::list<std::string>> notes;

    __attribute__((noinline)) void check(const Order &order, unsigned key) {
        if (key % 8 == 0) throw std::runtime_error("order of " + order.customer + " was refused: line " + order.lines.front());
    }
    __attribute__((noinline)) void place(unsigned key) {
        auto order = std::make_shared<Order>();
        order->customer = "a customer with a long name, number " + std::to_string(key % 5000);
        for (unsigned i = 0; i < 4; i++) order->lines.push_back("line " + std::to_string(i) + " with an article of some length");
        check(*order, key);
        orders["order " + std::to_string(key % 20000) + " of the day"] = order;
    }

  public:
    size_t refused = 0;
    void serve(unsigned key) {
        try {
            place(key);
        } catch (const std::exception &error) {
            auto &list = notes[key % 512];
            list.push_back(error.what());
            if (list.size() > 16) list.pop_front();
            refused++;
        }
        if (key % 3 == 0 && !orders.empty()) orders.erase(orders.begin());
    }
    size_t size() const { return orders.size(); }
};

} // namespace

int main(int argc, char **argv) {
    const unsigned rounds = argc > 1 ? atoi(argv[1]) : 100000;
    Shop shop;
    unsigned key = 12345;
    for (unsigned i = 0; i < rounds; i++) {
        key = key * 1664525 + 1013904223;
        shop.serve(key >> 8);
    }
    printf("%zu orders kept, %zu refused\n", shop.size(), shop.refused);
    return 0;
}
