# For `cargo xtask verdicts`: "verdicts_more.rb SECONDS". Tickets are opened, worked on and closed, each page about them is made from a template,
# and those that were closed are remembered by a table of 500.
require "erb"
require "json"
require "set"

Ticket = Struct.new(:number, :title, :notes, :tags, :due)
PAGE = ERB.new(<<~TEXT, trim_mode: "-")
  <h1><%= ticket.title %></h1>
  <%- ticket.notes.each do |note| -%>
  <p><%= ERB::Util.html_escape(note) %></p>
  <%- end -%>
  <i><%= ticket.tags.map(&:to_s).sort.join(", ") %></i>
TEXT

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

finish = now + ARGV[0].to_f
dice = Random.new(3)
open_ones, closed, turn = {}, {}, 0
while now < finish
  if open_ones.size < 300 + dice.rand(100)
    open_ones[turn] = Ticket.new(turn, "ticket #{turn}: #{"why " * dice.rand(1..12)}", [], Set.new, dice.rand(500))
  end
  5.times do
    ticket = open_ones.values[dice.rand(open_ones.size)]
    ticket.notes << "note <#{turn}> #{"and so on " * dice.rand(20)}"
    ticket.tags << %i[bug urgent question wish later].sample(random: dice)
    ticket.due -= 1
    page = PAGE.result_with_hash(ticket: ticket)
    next unless ticket.notes.size > 20 || ticket.due.negative?
    open_ones.delete(ticket.number)
    closed[ticket.number] = JSON.parse(JSON.generate(number: ticket.number, lines: page.lines.grep(/and so/).map(&:strip)))
    closed.shift if closed.size > 500
  end
  turn += 1
  sleep 0.005
end
puts "turns #{turn}"
