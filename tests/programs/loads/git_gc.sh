# Packs a repository of thirty changes, by six programs one after the other and below each other. $UNDER: what git is run under.
set -e
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_AUTHOR_DATE='1700000000 +0000' GIT_CONFIG_GLOBAL=/dev/null
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b GIT_COMMITTER_DATE='1700000000 +0000'
git init -q repository
cd repository
for i in $(seq 30); do
  seq "$i" 3000 >"file$i"
  git add .
  git commit -qm "change $i"
done
$UNDER /usr/bin/git gc -q --prune=now
git fsck --strict
git count-objects -v | grep -v size
git log --format=%H | cksum
