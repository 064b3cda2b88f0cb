# Hashes, regular expressions and sorting, for ever.
use strict;
use warnings;

sub count {
    my ($text) = @_;
    my %count;
    $count{ lc $1 }++ while $text =~ /(\w+)/g;
    return \%count;
}

sub ordered {
    my ($count) = @_;
    return sort { $count->{$b} <=> $count->{$a} || $a cmp $b } keys %$count;
}

while (1) {
    my $text = join ' ', map { sprintf 'word%d %x, (%d)', $_ % 97, $_, $_ * 7 } 1 .. 4000;
    my @words = ordered(count($text));
    ( my $other = $text ) =~ s/\((\d+)\)/<$1>/g;
    my $total = 0;
    $total += length for split /[ ,]+/, $other;
}
