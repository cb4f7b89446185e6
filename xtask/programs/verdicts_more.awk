# For `cargo xtask verdicts`: a report of each hour of a log of accesses, which is read as often as is asked for: gawk -v times=N -f THIS LOG
function report(hour, user, parts, number) {
    for (user in bytes) number += bytes[user] > 100000
    printf "%s: %d users, %d with much, %d paths, longest %s\n", hour, length(bytes), number, length(paths), substr(longest, 1, 40)
    delete bytes
    delete paths
    longest = ""
}
BEGIN {
    for (; times > 0; times--) {
        while ((getline line < ARGV[1]) > 0) {
            split(line, field, /[ \t]+/)
            hour = substr(field[2], 1, 2)
            if (hour != last && last != "") report(last)
            last = hour
            bytes[field[1]] += field[4]
            path = tolower(gensub(/[?].*$/, "", 1, field[3]))
            paths[path] = paths[path] == "" ? field[1] : substr(paths[path] "," field[1], 1, 200)
            if (length(path) > length(longest)) longest = path
        }
        close(ARGV[1])
    }
    exit 0
}
