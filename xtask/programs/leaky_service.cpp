// leaky_service: a small request service with a bug, for the demonstration.
//
//   leaky_service serve SOCKET THREADS            answers requests until a client sends STOP, then prints what it did
//   leaky_service load SOCKET CLIENTS REQUESTS    CLIENTS connections with REQUESTS requests each, then STOP
//
// One request is a line, one answer is a line: PAGE name | LOGIN user | LOGOUT session | STOP.
//
// Pages are kept in a cache that is bounded: it grows and then stands still, which is no leak. Sessions are kept in a table that forgets them at
// LOGOUT, but never the audit trail that was begun for each: SessionTable::begin_audit_trail is the leak. The service counts what it leaks, so that a
// profiler's answer can be compared with the truth.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <unordered_map>
#include <vector>

namespace {

/// The pages rendered last: at most LIMIT of them.
class PageCache {
    static constexpr size_t LIMIT = 500;
    std::mutex lock;
    std::list<std::pair<std::string, std::string>> pages; // the most recently used in front
    std::unordered_map<std::string, decltype(pages)::iterator> by_name;

    static std::string render(const std::string &name) {
        std::string page = "<h1>" + name + "</h1>";
        for (int line = 0; line < 20; line++) page += "<p>line " + std::to_string(line) + " of " + name + "</p>";
        return page;
    }

  public:
    size_t length(const std::string &name) {
        std::lock_guard held(lock);
        auto found = by_name.find(name);
        if (found != by_name.end()) {
            pages.splice(pages.begin(), pages, found->second);
        } else {
            pages.emplace_front(name, render(name));
            by_name[name] = pages.begin();
            if (pages.size() > LIMIT) {
                by_name.erase(pages.back().first);
                pages.pop_back();
            }
        }
        return pages.front().second.size();
    }
};

/// What a user did in a session.
struct AuditTrail {
    unsigned long session;
    char user[40];
    char actions[200];
};

struct Session {
    std::string user;
    AuditTrail *trail;
};

class SessionTable {
    std::mutex lock;
    std::unordered_map<unsigned long, Session> sessions;
    unsigned long last = 0;

    __attribute__((noinline)) AuditTrail *begin_audit_trail(const std::string &user) {
        AuditTrail *trail = new AuditTrail{last, {}, {}}; // the leak: nobody ever deletes it
        snprintf(trail->user, sizeof trail->user, "%s", user.c_str());
        begun++;
        return trail;
    }

  public:
    unsigned long begun = 0;

    unsigned long login(const std::string &user) {
        std::lock_guard held(lock);
        last++;
        sessions[last] = Session{user, begin_audit_trail(user)};
        return last;
    }
    bool logout(unsigned long id) {
        std::lock_guard held(lock);
        return sessions.erase(id) > 0; // forgets the trail, and with it the last pointer to it
    }
};

class Service {
    PageCache pages;
    std::atomic<bool> stopping{false};

  public:
    SessionTable sessions;
    std::atomic<unsigned long> requests{0};
    int listener = -1;

    std::string answer(const std::string &request) {
        requests++;
        const size_t space = request.find(' ');
        const std::string verb = request.substr(0, space), word = space == std::string::npos ? "" : request.substr(space + 1);
        if (verb == "PAGE") return std::to_string(pages.length(word));
        if (verb == "LOGIN") return std::to_string(sessions.login(word));
        if (verb == "LOGOUT") return sessions.logout(strtoul(word.c_str(), nullptr, 10)) ? "bye" : "who?";
        if (verb == "STOP") {
            stopping = true;
            shutdown(listener, SHUT_RDWR); // wakes every thread that waits in accept
            return "stopping";
        }
        return "what?";
    }

    /// One of the service's threads: takes a connection, answers its requests until it closes, takes the next.
    void work() {
        while (!stopping) {
            const int connection = accept(listener, nullptr, nullptr);
            if (connection < 0) return;
            std::string input;
            char buffer[4096];
            for (ssize_t got; (got = read(connection, buffer, sizeof buffer)) > 0;) {
                input.append(buffer, got);
                std::string output;
                for (size_t end; (end = input.find('\n')) != std::string::npos; input.erase(0, end + 1))
                    output += answer(input.substr(0, end)) + '\n';
                if (write(connection, output.data(), output.size()) < 0) break;
            }
            close(connection);
        }
    }
};

sockaddr_un address_of(const char *path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return address;
}

int serve(const char *path, int threads) {
    Service service;
    service.listener = socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = address_of(path);
    unlink(path);
    if (bind(service.listener, reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0 || listen(service.listener, 64) != 0)
        return perror("leaky_service: cannot listen"), 1;
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; i++) workers.emplace_back([&] { service.work(); });
    for (auto &worker : workers) worker.join();
    printf("requests %lu\naudit trails leaked %lu\nbytes leaked %lu\n", service.requests.load(), service.sessions.begun,
           service.sessions.begun * sizeof(AuditTrail));
    return 0;
}

/// Sends one line and returns the answer without its newline.
std::string ask(int connection, const std::string &request) {
    const std::string line = request + '\n';
    if (write(connection, line.data(), line.size()) < 0) return "";
    std::string answer;
    char buffer[256];
    while (answer.empty() || answer.back() != '\n') {
        const ssize_t got = read(connection, buffer, sizeof buffer);
        if (got <= 0) return "";
        answer.append(buffer, got);
    }
    answer.pop_back();
    return answer;
}

int connect_to(const char *path) {
    const int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    const sockaddr_un address = address_of(path);
    if (connect(connection, reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0) return -1;
    return connection;
}

int load(const char *path, int clients, int requests) {
    std::atomic<int> failed{0};
    std::vector<std::thread> threads;
    for (int client = 0; client < clients; client++)
        threads.emplace_back([&, client] {
            const int connection = connect_to(path);
            for (int i = 0; i < requests; i++) {
                const std::string name = std::to_string(client) + "-" + std::to_string(i);
                const std::string got = i % 10 ? ask(connection, "PAGE page-" + std::to_string(i * 7 % 2000))
                                               : ask(connection, "LOGOUT " + ask(connection, "LOGIN user-" + name));
                if (got.empty() || got == "who?") failed++;
            }
            close(connection);
        });
    for (auto &thread : threads) thread.join();
    const int connection = connect_to(path);
    ask(connection, "STOP");
    close(connection);
    if (failed) fprintf(stderr, "leaky_service: %d requests failed\n", failed.load());
    return failed ? 1 : 0;
}

} // namespace

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "serve")) return serve(argv[2], atoi(argv[3]));
    if (argc == 5 && !strcmp(argv[1], "load")) return load(argv[2], atoi(argv[3]), atoi(argv[4]));
    fprintf(stderr, "usage: leaky_service serve SOCKET THREADS | load SOCKET CLIENTS REQUESTS\n");
    return 2;
}
