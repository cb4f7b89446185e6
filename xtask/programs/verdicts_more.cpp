// More programs of C++ for `cargo xtask verdicts`: "more KIND SECONDS". Each of those that leak makes documents, counts words and keeps a window
// of what it has seen beside. They end by _Exit: what they keep is there at the end of the capture.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#define SITE __attribute__((noinline))

namespace {

using Clock = std::chrono::steady_clock;
std::mt19937 dice(11);

std::string text(size_t least, size_t most) { return std::string(least + dice() % (most - least), 't'); }

/// What those that leak do beside.
struct Node {
    std::string name;
    std::map<std::string, std::string> attributes;
    std::vector<std::unique_ptr<Node>> children;
};

SITE std::unique_ptr<Node> document(int depth) {
    auto node = std::make_unique<Node>();
    node->name = text(5, 40);
    for (int left = dice() % 3; left; left--) node->attributes[text(3, 30)] = text(1, 60);
    for (int left = depth ? 1 + dice() % 3 : 0; left; left--) node->children.push_back(document(depth - 1));
    return node;
}

SITE void write(const Node &node, std::ostream &out) {
    out << '<' << node.name;
    for (const auto &[name, value] : node.attributes) out << ' ' << name << "=\"" << value << '"';
    out << '>';
    for (const auto &child : node.children) write(*child, out);
}

SITE void serve() {
    std::ostringstream out;
    write(*document(3), out);
    static std::deque<std::string> written; // the last ones
    written.push_back(out.str().substr(0, 50 + dice() % 700));
    if (written.size() > 250) written.pop_front();
    static std::multiset<std::string> words; // those of the last ones
    static std::deque<std::multiset<std::string>::iterator> order;
    for (int times = 0; times < 4; times++) order.push_back(words.insert(std::to_string(dice() % 10000) + text(10, 30)));
    for (; order.size() > 3000; order.pop_front()) words.erase(order.front());
}

/// Answers that are kept for three seconds, and 4,000 at most: those that were asked for last.
class Answers {
    struct Answer {
        std::string key, text;
        Clock::time_point until;
    };
    std::list<Answer> order;
    std::unordered_map<std::string, std::list<Answer>::iterator> found;

    void drop(std::list<Answer>::iterator one) {
        found.erase(one->key);
        order.erase(one);
    }

  public:
    SITE const std::string &get(const std::string &key) {
        const auto now = Clock::now();
        if (const auto at = found.find(key); at != found.end()) {
            if (at->second->until > now) {
                order.splice(order.begin(), order, at->second);
                return at->second->text;
            }
            drop(at->second);
        }
        order.push_front({key, text(100, 900), now + std::chrono::seconds(3)});
        found[key] = order.begin();
        while (order.size() > 4000) drop(std::prev(order.end()));
        return order.front().text;
    }
};

/// Some are asked for all the time, and some never again.
SITE void expiring(int) {
    static Answers answers;
    for (int times = 0; times < 5; times++) answers.get("answer to " + std::to_string(dice() % 3 ? dice() % 300 : dice() % 1'000'000));
}

/// A frame of a simulation: bodies that are born and die, a grid that is made for each frame, and what is seen of it.
SITE void simulation(int turn) {
    struct Body {
        double at[2], speed[2];
        int life;
        std::vector<double> trail;
    };
    static std::vector<std::unique_ptr<Body>> bodies;
    if (turn % 600 < 500)
        for (int left = dice() % 6; left; left--) {
            const double x = dice() % 100, y = dice() % 100;
            bodies.push_back(std::make_unique<Body>(Body{{x, y}, {x / 90 - 0.5, y / 90 - 0.5}, static_cast<int>(dice() % 500), {}}));
        }
    std::map<std::pair<int, int>, std::vector<Body *>> grid;
    for (auto &body : bodies) {
        for (int axis = 0; axis < 2; axis++) body->at[axis] += body->speed[axis];
        body->trail.push_back(body->at[0]);
        if (body->trail.size() > 60) body->trail.erase(body->trail.begin(), body->trail.begin() + 30);
        grid[{static_cast<int>(body->at[0]) / 10, static_cast<int>(body->at[1]) / 10}].push_back(body.get());
    }
    for (auto &[place, near] : grid)
        if (near.size() > 1) std::swap(near.front()->speed[0], near.back()->speed[0]);
    std::erase_if(bodies, [](const auto &body) { return body->life-- <= 0; });
}

/// Pages that know the one above them; of one site in five they own it, too.
struct Page : std::enable_shared_from_this<Page> {
    std::string title;
    std::vector<std::shared_ptr<Page>> links;
    std::weak_ptr<Page> above;
};

SITE std::shared_ptr<Page> build_site(bool owns) {
    auto top = std::make_shared<Page>();
    top->title = text(20, 80);
    for (int times = 0; times < 6; times++) {
        auto page = std::make_shared<Page>();
        page->title = text(20, 80);
        page->above = top;
        if (owns) page->links.push_back(top);
        top->links.push_back(page);
    }
    return top;
}

void cycle(int turn) { build_site(turn % 5 == 0); }

/// Shapes are deleted as what they are all of, which has no virtual destructor.
struct Shape {
    double size = 1;
    virtual double area() const { return size * size; }
};

struct Label : Shape {
    std::string words;
    SITE void set_words(size_t length) {
        words.assign(length, 'w');
        __asm__ volatile(""); // no tail call
    }
    double area() const override { return size * static_cast<double>(words.size()); }
};

SITE Shape *shape(int turn) {
    if (turn % 4) return new Shape;
    auto *label = new Label;
    label->set_words(40 + dice() % 160);
    return label;
}

void shapes(int turn) {
    for (int times = 0; times < 12; times++) {
        Shape *one = shape(turn + times);
        if (one->area() < 0) std::puts("strange");
#pragma GCC diagnostic ignored "-Wdelete-non-virtual-dtor"
        delete one;
    }
}

/// Who wants to know of an event says so, and never that it is enough.
class Events {
    std::vector<std::function<void(int)>> wanted;

  public:
    SITE void subscribe(const std::string &who) {
        wanted.push_back([who](int what) { if (what < 0) std::puts(who.c_str()); });
    }
    void happen(int what) const {
        for (size_t at = 0; at < wanted.size(); at += 50) wanted[at](what);
    }
};

void callbacks(int turn) {
    static Events events;
    if (turn % 3 == 0) events.subscribe("window " + text(20, 60));
    events.happen(turn);
}

/// Users come again, and have their sessions still; those who do not, too.
struct Session {
    std::string user;
    std::vector<std::string> basket;
    int seen = 0;
};

SITE Session &open_session(unsigned user) {
    static std::unordered_map<unsigned, std::unique_ptr<Session>> sessions;
    auto &session = sessions[user];
    if (!session) {
        session = std::make_unique<Session>();
        session->user = "user " + std::to_string(user) + text(10, 30);
    }
    return *session;
}

void sessions(int turn) {
    // One in eight is new.
    const unsigned newest = 1 + turn / 8;
    auto &session = open_session(turn % 8 ? dice() % newest : newest);
    session.seen++;
    std::vector<std::string> shown = session.basket;
    for (int times = 0; times < 5; times++) shown.push_back(text(20, 90));
}

/// A message whose number is none is not deleted: who would have done so is not reached.
struct Message {
    std::string head, body;
    int number = 0;
};

SITE int parse_message(const char *number) {
    auto *message = new Message;
    message->head = text(30, 60);
    message->body = text(100, 400);
    message->number = std::stoi(number);
    const int result = message->number;
    delete message;
    return result;
}

void exceptions(int turn) {
    for (int times = 0; times < 4; times++)
        try {
            parse_message((turn * 4 + times) % 50 ? "42" : "none");
        } catch (const std::invalid_argument &error) {
            const std::string logged = std::string("bad message: ") + error.what();
            if (logged.empty()) std::puts("strange");
        }
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    struct Kind {
        void (*run)(int);
        bool serves;
    };
    const std::map<std::string, Kind> kinds = {{"expiring", {expiring, false}},   {"simulation", {simulation, false}}, {"cycle", {cycle, true}},
                                               {"shapes", {shapes, true}},        {"callbacks", {callbacks, true}},    {"sessions", {sessions, true}},
                                               {"exceptions", {exceptions, true}}};
    const auto found = kinds.find(argv[1]);
    if (found == kinds.end()) return 2;
    const auto end = Clock::now() + std::chrono::duration<double>(atof(argv[2]));
    int turn = 0;
    for (; Clock::now() < end; turn++) {
        if (found->second.serves) serve();
        found->second.run(turn);
        std::this_thread::sleep_for(std::chrono::microseconds(800));
    }
    printf("turns %d\n", turn);
    fflush(stdout);
    _Exit(0);
}
