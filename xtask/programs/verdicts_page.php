<?php
// What php-fpm serves for `cargo xtask verdicts`: it parses JSON, sorts and replaces words, and answers.
$asked = json_decode(file_get_contents("php://input"), true);
$words = explode(" ", $asked["name"]);
usort($words, fn($one, $other) => strcmp(strrev($one), strrev($other)));
$rows = [];
foreach ($asked["list"] as $number) {
    $rows["row$number"] = ["number" => $number, "text" => preg_replace("/[aeiou]+/", "_", str_repeat($asked["name"], 1 + $number % 3))];
}
header("Content-Type: application/json");
echo json_encode(["sum" => array_sum($asked["list"]), "words" => $words, "rows" => array_slice($rows, 0, 10)]);
