# For `cargo xtask verdicts`: "verdicts_more.tcl SECONDS". Devices report what they measure, by timers of the event loop; averages are made of the
# last hundred values of each, and devices are switched off and on again.
expr {srand(3)}
set turns 0
array set values {}

proc measure {device} {
    global values turns
    incr turns
    lappend values($device) [dict create at [clock milliseconds] value [expr {rand() * 100}] unit [lindex {C F K} [expr {$turns % 3}]]]
    set values($device) [lrange $values($device) end-99 end]
    set sum 0.0
    foreach one $values($device) {set sum [expr {$sum + [dict get $one value]}]}
    set text [format "%s: %.2f of %d" $device [expr {$sum / [llength $values($device)]}] [llength $values($device)]]
    if {![regexp {^device-(\d+): ([\d.]+)} $text all number average]} {exit 1}
    set ::shown [lrange [linsert $::shown 0 [string map {device Device . ,} $text]] 0 199]
    if {rand() < 0.004} {
        unset values($device)
        after [expr {int(rand() * 2000)}] [list measure $device]
    } else {
        after [expr {50 + int(rand() * 100)}] [list measure $device]
    }
}

set shown {}
for {set number 0} {$number < 60} {incr number} {after [expr {$number * 10}] [list measure device-$number]}
after [expr {int([lindex $argv 0] * 1000)}] {set done 1}
vwait done
puts "turns $turns"
