# For `cargo xtask verdicts`: "verdicts_more.R SECONDS": the median of a sample, again and again, and models of it.
finish <- Sys.time() + as.numeric(commandArgs(trailingOnly = TRUE)[1])
set.seed(5)
people <- data.frame(age = runif(400, 20, 70), town = sample(c("north", "south", "west"), 400, TRUE))
people$wage <- 1000 + 20 * people$age + rnorm(400, 0, 100)
slopes <- numeric(200)
turns <- 0
while (Sys.time() < finish) {
  some <- people[sample(nrow(people), replace = TRUE), ]
  fit <- lm(wage ~ age + town, data = some)
  slopes[1 + turns %% length(slopes)] <- coef(fit)[["age"]]
  by_town <- tapply(some$wage, some$town, median)
  text <- paste(names(by_town), format(by_town, digits = 2), sep = "=", collapse = "; ")
  parts <- strsplit(text, "; ")[[1]]
  stopifnot(length(parts) == 3)
  turns <- turns + 1
  Sys.sleep(0.01)
}
cat("turns", turns, "slope", mean(slopes[slopes != 0]), "\n")
