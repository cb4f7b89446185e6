<?php
// For `cargo xtask verdicts`: "verdicts_more.php SECONDS". A shop of 400 things: baskets are filled, paid for or given up after two seconds, pages
// are rendered and compressed, and what is rendered is kept until the thing it is about changes.

final class Basket
{
    /** @var array<int, int> */
    public array $things = [];

    public function __construct(public readonly string $user, public float $touched)
    {
    }
}

$end = microtime(true) + (float) $argv[1];
mt_srand(7);
$prices = array_map(fn (int $number) => 100 + $number % 50, range(0, 399));
$baskets = $pages = $sold = [];
for ($turn = 0; ($now = microtime(true)) < $end; $turn++) {
    $user = 'user ' . mt_rand(0, 5000);
    $basket = $baskets[$user] ??= new Basket($user, $now);
    $basket->touched = $now;
    for ($times = mt_rand(1, 6); $times; $times--) {
        $thing = mt_rand(0, 399);
        $basket->things[$thing] = ($basket->things[$thing] ?? 0) + 1;
        $pages[$thing] ??= gzcompress(str_repeat("<li>thing $thing costs {$prices[$thing]}</li>\n", 1 + $thing % 30));
        if (!str_contains(gzuncompress($pages[$thing]), (string) $prices[$thing])) {
            exit(1);
        }
    }
    if (mt_rand(0, 2) === 0) {
        $bill = json_encode(['user' => $user, 'things' => $basket->things, 'sum' => array_sum($basket->things)]);
        $sold[] = md5($bill) . preg_replace('/\d+/', '<$0>', $bill);
        unset($baskets[$user]);
        $sold = count($sold) > 700 ? array_slice($sold, -350) : $sold;
    }
    $changed = mt_rand(0, 399);
    $prices[$changed]++;
    unset($pages[$changed]);
    if ($turn % 100 === 0) {
        $baskets = array_filter($baskets, fn (Basket $one) => $now - $one->touched < 2);
    }
    usleep(1500);
}
echo "turns $turn\n";
