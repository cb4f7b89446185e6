# For `cargo xtask verdicts`: "verdicts_bounded.pl SECONDS". Words are counted in tables that are emptied when they have so many entries,
# lines are split, joined, sorted and matched, and the last hundred results are kept.
use strict;
use warnings;
use Time::HiRes qw(time sleep);

my $end = time + shift;
my (%count, @last);
my $turns = 0;
while (time < $end) {
    my @words = map { join '', map { chr(97 + int rand 26) } 1 .. 1 + int rand 3 } 1 .. 200;
    $count{$_}++ for @words;
    %count = () if keys %count > 3000;
    my $line = join ' ', sort { $count{$a} // 0 <=> $count{$b} // 0 or $a cmp $b } @words;
    my @found = $line =~ /\b(a\w*)\b/g;
    push @last, { line => $line, found => \@found };
    shift @last if @last > 100;
    $turns++;
    sleep 0.002;
}
print "turns $turns\n";
